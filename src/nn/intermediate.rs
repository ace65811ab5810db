//! Elements between the input and the picture, for whoever looks for the stage in which
//! two devices part.
//!
//! As with [`super::trace`], they belong to the thread that [`noted`] was called on, and
//! cost nothing while nobody asks for them.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor};

/// The elements of one place.
#[derive(Debug, Clone)]
pub(crate) struct Intermediate {
    /// Where: the name with which it was noted, and how often that was before.
    pub place: String,
    /// All of them, in 32 bits.
    pub numbers: Vec<f32>,
}

thread_local! {
    static NOTES: RefCell<Option<Vec<Intermediate>>> = const { RefCell::new(None) };
}

/// Notes `x` under `name`.
///
/// # Errors
/// A candle error of the device, which may be that of work queued before.
pub(crate) fn note(name: &str, x: &Tensor) -> Result<()> {
    NOTES.with_borrow_mut(|notes| {
        let Some(notes) = notes else { return Ok(()) };
        let numbers = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let before = notes.iter().filter(|note| note.place.starts_with(name)).count();
        notes.push(Intermediate { place: format!("{name} {before}"), numbers });
        Ok(())
    })
}

/// What `work` returns, and what was noted meanwhile.
pub(crate) fn noted<R>(work: impl FnOnce() -> R) -> (R, Vec<Intermediate>) {
    /// Ends it even if the work panics.
    struct Noting;

    impl Drop for Noting {
        fn drop(&mut self) {
            NOTES.set(None);
        }
    }

    NOTES.set(Some(Vec::new()));
    let noting = Noting;
    let made = work();
    let notes = NOTES.take().unwrap_or_default();
    drop(noting);
    (made, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_noted_in_order_while_somebody_asks() {
        let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
        note("nobody asks", &x).unwrap();

        let (_, notes) = noted(|| {
            note("block", &x).unwrap();
            note("block", &x.to_dtype(DType::BF16).unwrap()).unwrap();
        });

        let places: Vec<_> = notes.iter().map(|note| note.place.as_str()).collect();
        assert_eq!(places, ["block 0", "block 1"]);
        assert_eq!(notes[1].numbers, [1.0, 2.0]);
        let panicking = || noted(|| panic!("the work's own fault"));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert!(NOTES.with_borrow(Option::is_none));
    }
}
