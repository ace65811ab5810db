//! Which model a request is for: the first thing that is read of it.

use std::sync::Arc;

use super::endpoint::Endpoint;
use super::error::RequestError;
use super::fields::{Fields, quote};
use super::models::{Models, ServedModel};
use super::table;

/// The model that a request is for.
pub(super) struct Route {
    pub(super) model: Arc<ServedModel>,
    /// The name by which it was asked for, if any was said.
    pub(super) name: Option<String>,
    /// What the client should know: sentences.
    pub(super) warnings: Vec<String>,
}

impl Route {
    /// Takes the name of the model out of `fields`. Where the address names a deployment,
    /// that is it, as it is on Azure; where nobody names one, the endpoint has a default.
    ///
    /// # Errors
    /// [`RequestError::UnknownModel`] for a name that is none.
    pub(super) fn find(
        fields: &mut Fields,
        endpoint: Endpoint,
        deployment: Option<String>,
        models: &Models,
    ) -> Result<Self, RequestError> {
        let kind = endpoint.task_kind();
        let asked = fields.text(table::MODEL.name)?;
        let mut warnings = Vec::new();
        let (model, name) = match (deployment, asked) {
            (None, None) => (models.default_for(kind), None),
            (None, Some(asked)) => (models.named(&asked, Some(kind))?, Some(asked)),
            (Some(address), None) => (models.named(&address, Some(kind))?, Some(address)),
            (Some(address), Some(asked)) => {
                let model = models.named(&address, Some(kind))?;
                let found = models.find(&asked, Some(kind));
                let is_same = found.is_some_and(|found| Arc::ptr_eq(found, model));
                if is_same || models.aliases.include(&asked) {
                    (model, Some(asked))
                } else {
                    warnings.push(format!(
                        "'model' {} has no effect: the address names the deployment {}.",
                        quote(&asked),
                        quote(&address)
                    ));
                    (model, Some(address))
                }
            }
        };
        Ok(Self { model: Arc::clone(model), name, warnings })
    }
}
