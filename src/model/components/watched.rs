//! The observer of a request, asked from within the networks.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use crate::domain::Picture;
use crate::interruption;
use crate::model::{Generation, LayerProgress, ModelError, Stage, StepObserver, StepProgress};

/// What `work` makes, which is given `observer`. Meanwhile every check of
/// [`interruption`] asks [`StepObserver::is_cancelled`], and those between layers tell
/// [`StepObserver::on_layer`].
///
/// # Errors
/// [`ModelError::Cancelled`] if a check broke the work off, else what `work` fails with.
pub(in crate::model) fn observed(
    observer: &mut dyn StepObserver,
    work: impl FnOnce(&mut dyn StepObserver) -> Result<Generation, ModelError>,
) -> Result<Generation, ModelError> {
    let shared = Shared { observer: RefCell::new(observer), is_cancelled: Cell::new(false) };
    let told = || {
        interruption::told_of_layers(&|done, total| shared.tells(done, total), || {
            work(&mut &shared)
        })
    };
    let made = interruption::watched(&|| shared.asks(), told);
    match made {
        // As a tensor operation's error, or wrapped in another.
        Err(_) if shared.is_cancelled.get() => Err(ModelError::Cancelled),
        made => made,
    }
}

/// An observer that is told of steps, and asked between them.
struct Shared<'a> {
    observer: RefCell<&'a mut dyn StepObserver>,
    /// What it answered; it is not asked again after a yes.
    is_cancelled: Cell<bool>,
}

impl Shared<'_> {
    fn asks(&self) -> bool {
        if !self.is_cancelled.get()
            && let Ok(mut observer) = self.observer.try_borrow_mut()
        {
            self.is_cancelled.set(observer.is_cancelled());
        }
        self.is_cancelled.get()
    }

    fn tells(&self, done: usize, total_layers: usize) {
        if let Ok(mut observer) = self.observer.try_borrow_mut() {
            observer.on_layer(LayerProgress { done, total_layers });
        }
    }
}

impl StepObserver for &Shared<'_> {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        self.observer.borrow_mut().on_step(progress)
    }

    fn on_stage(&mut self, stage: Stage) {
        self.observer.borrow_mut().on_stage(stage);
    }

    fn on_decoding_cost(&mut self, steps: f64) {
        self.observer.borrow_mut().on_decoding_cost(steps);
    }

    fn on_layer(&mut self, layer: LayerProgress) {
        self.observer.borrow_mut().on_layer(layer);
    }

    fn is_cancelled(&mut self) -> bool {
        self.asks()
    }

    fn wants_preview(&mut self, progress: StepProgress) -> bool {
        self.observer.borrow_mut().wants_preview(progress)
    }

    fn on_preview(&mut self, progress: StepProgress, preview: Picture) {
        self.observer.borrow_mut().on_preview(progress, preview);
    }
}
