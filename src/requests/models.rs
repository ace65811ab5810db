//! The models that requests can be for, and which one a request is for.

use std::sync::Arc;

use super::error::RequestError;
use super::fields::quote;
use super::names::ModelNames;
use super::quality::{QualityOverrides, QualityTable};
use crate::domain::{RequestLoras, TaskKind};
use crate::model::LoraNames;
use crate::service::{ImageService, ServiceError};

/// A model with what the settings say of requests to it.
#[derive(Debug, Clone)]
pub struct ModelService {
    /// The way to it.
    pub images: ImageService,
    /// Other names of this model; one that ends with `*` stands for all that begin so.
    pub aliases: Vec<String>,
    /// What `quality` stands for, where the settings say so.
    pub quality: QualityOverrides,
    /// The LoRAs that requests may name, if there can be any.
    pub loras: Option<LoraNames>,
    /// SHA-256 of the pixels that its test picture should have, if the settings say so.
    pub health_digest: Option<String>,
}

/// A model that requests can be for.
pub(crate) struct ServedModel {
    pub(crate) images: ImageService,
    pub(crate) names: ModelNames,
    pub(crate) qualities: QualityTable,
    pub(crate) health_digest: Option<String>,
    loras: Option<LoraNames>,
}

impl ServedModel {
    /// The names of the LoRAs that requests may use. Not for the async runtime.
    pub(crate) fn loras(&self) -> Vec<String> {
        self.loras.as_ref().map(LoraNames::all).unwrap_or_default()
    }

    /// Whether there may be any.
    pub(crate) fn has_loras(&self) -> bool {
        self.loras.is_some()
    }

    /// Refuses names that are none, before the request waits for its turn. Not for the
    /// async runtime.
    ///
    /// # Errors
    /// [`ServiceError::Unsuitable`] on `loras`.
    pub(super) fn check_loras(&self, loras: &RequestLoras) -> Result<(), ServiceError> {
        Ok(LoraNames::check(self.loras.as_ref(), loras)?)
    }
}

/// All of them, the default one first.
pub(crate) struct Models {
    served: Vec<Arc<ServedModel>>,
    /// Names that stand for whichever model an endpoint has by default.
    pub(crate) aliases: ModelNames,
    /// Models that are there and may not be asked for.
    withheld: Vec<Arc<ServedModel>>,
}

impl Models {
    /// `services` must not be empty.
    pub(crate) fn new(services: Vec<ModelService>, aliases: &[String]) -> Self {
        let served = |service: ModelService| {
            let card = service.images.card();
            Arc::new(ServedModel {
                names: ModelNames::new(&card.id, &service.aliases),
                qualities: QualityTable::new(card, &service.quality),
                loras: service.loras,
                health_digest: service.health_digest,
                images: service.images,
            })
        };
        let served = services.into_iter().map(served).collect();
        Self { served, aliases: ModelNames::of_aliases(aliases), withheld: Vec::new() }
    }

    /// Those that one of `names` means: by any of their names, or with `*` at its end by how
    /// one begins. A name that stands for any model means the default ones.
    pub(crate) fn restricted_to(&self, names: &[String]) -> Self {
        let is_default = |model: &Arc<ServedModel>| {
            TaskKind::ALL.iter().any(|kind| Arc::ptr_eq(self.default_for(*kind), model))
        };
        let is_meant = |model: &&Arc<ServedModel>| {
            names.iter().any(|name| {
                model.names.are_meant_by(name)
                    || (self.aliases.are_meant_by(name) && is_default(model))
            })
        };
        let (served, withheld) = self.served.iter().partition(is_meant);
        let cloned = |models: Vec<&Arc<ServedModel>>| models.into_iter().cloned().collect();
        Self { served: cloned(served), aliases: self.aliases.clone(), withheld: cloned(withheld) }
    }

    pub(crate) fn all(&self) -> &[Arc<ServedModel>] {
        &self.served
    }

    /// The model of requests that name none; there must be one.
    pub(crate) fn first(&self) -> &Arc<ServedModel> {
        &self.served[0]
    }

    /// The model of requests of `kind` that name none: the first that does this at all.
    pub(crate) fn default_for(&self, kind: TaskKind) -> &Arc<ServedModel> {
        let offers = |model: &&Arc<ServedModel>| model.images.card().tasks.contains(kind);
        self.served.iter().find(offers).unwrap_or_else(|| self.first())
    }

    /// Refuses what no model does.
    ///
    /// # Errors
    /// [`ServiceError::NotOffered`].
    pub(crate) fn check_offered(&self, kind: TaskKind) -> Result<(), ServiceError> {
        self.default_for(kind).images.check_offered(kind)
    }

    /// The model that is called `name`: by its id, the last part of that, or an alias of its
    /// own; else the one of requests of `kind`, if the name stands for any.
    pub(crate) fn find(&self, name: &str, kind: Option<TaskKind>) -> Option<&Arc<ServedModel>> {
        let by = |is_meant: fn(&ModelNames, &str) -> bool| {
            self.served.iter().find(|model| is_meant(&model.names, name))
        };
        if self.served.is_empty() {
            return None;
        }
        by(ModelNames::is_id).or_else(|| by(ModelNames::include)).or_else(|| {
            let default = || kind.map_or_else(|| self.first(), |kind| self.default_for(kind));
            self.aliases.include(name).then(default)
        })
    }

    /// As [`Self::find`].
    ///
    /// # Errors
    /// [`RequestError::UnknownModel`], with the names that would do, or
    /// [`RequestError::WithheldModel`].
    pub(crate) fn named(
        &self,
        name: &str,
        kind: Option<TaskKind>,
    ) -> Result<&Arc<ServedModel>, RequestError> {
        self.find(name, kind).ok_or_else(|| {
            let asked = quote(name);
            if self.withheld.iter().any(|model| model.names.include(name)) {
                return RequestError::WithheldModel { asked };
            }
            let served = self.served.iter().map(|model| model.images.card().id.clone());
            RequestError::UnknownModel { asked, served: served.collect() }
        })
    }

    /// All whole names that can be asked for.
    pub(crate) fn listed(&self) -> Vec<&str> {
        if self.served.is_empty() {
            return Vec::new();
        }
        let own = self.served.iter().flat_map(|model| model.names.listed());
        let mut names: Vec<&str> = Vec::new();
        for name in own.chain(self.aliases.listed()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}
