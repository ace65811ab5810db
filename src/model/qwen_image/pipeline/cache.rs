//! What requests have in common, kept: the same picture or prompt again, the same
//! schedule again.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use crate::model::ModelError;
use crate::model::cache::{ContentCache, ContentHash, ContentKey};
use crate::model::qwen_image::modulation::ModulationTable;
use crate::model::qwen_image::transformer::Transformer;

/// The pipeline's results by the content that they were made from. The model's
/// thread is its only user.
pub(in crate::model::qwen_image) struct PipelineCache(RefCell<ContentCache<Kept>>);

#[derive(Clone)]
enum Kept {
    Tensor(Tensor),
    Modulations(Arc<ModulationTable>),
}

impl PipelineCache {
    /// Of at most `max_bytes`.
    pub(in crate::model::qwen_image) fn new(max_bytes: usize) -> Self {
        Self(RefCell::new(ContentCache::new(max_bytes)))
    }

    /// Forgets all of it.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().make_room(usize::MAX);
    }

    /// The tensor that was made from the content of `key`.
    pub(super) fn tensor(&self, key: &ContentKey) -> Option<Tensor> {
        match self.0.borrow_mut().get(key) {
            Some(Kept::Tensor(tensor)) => Some(tensor),
            Some(Kept::Modulations(_)) | None => None,
        }
    }

    /// The same, or what `make` makes of that content.
    pub(super) fn tensor_or(
        &self,
        key: ContentKey,
        make: impl FnOnce() -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        if let Some(tensor) = self.tensor(&key) {
            return Ok(tensor);
        }
        let tensor = make()?;
        self.keep(key, &tensor);
        Ok(tensor)
    }

    /// Keeps `tensor`, which was made from the content of `key`.
    pub(super) fn keep(&self, key: ContentKey, tensor: &Tensor) {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.0.borrow_mut().insert(key, Kept::Tensor(tensor.clone()), bytes);
    }

    /// What noise levels do to the tokens of `transformer`, as it is changed now.
    pub(super) fn modulations(
        &self,
        transformer: &Transformer,
        sigmas: &[f32],
    ) -> TensorResult<Arc<ModulationTable>> {
        let bits = sigmas.iter().map(|sigma| sigma.to_bits());
        let changes = transformer.adapters().active_key();
        let changes = changes.as_deref().unwrap_or_default().as_bytes();
        let key = ContentHash::of("modulations").numbers(bits).bytes(changes).finish();
        if let Some(Kept::Modulations(table)) = self.0.borrow_mut().get(&key) {
            return Ok(table);
        }
        let table = Arc::new(transformer.modulations(sigmas)?);
        self.0.borrow_mut().insert(key, Kept::Modulations(table.clone()), table.bytes());
        Ok(table)
    }
}
