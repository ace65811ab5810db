//! What a request will take, told before it waits: from what such requests took, or from
//! what was measured when its model was loaded.

use super::ServiceError;
use super::pace::Work;
use crate::model::{Estimate, ModelCard};

/// What a request will take, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestEstimate {
    /// How much work it is, in seconds: those of a device that is not known if nothing has
    /// been measured, so that only relations count.
    pub cost_s: f64,
    /// How long its pictures take once they are begun, in seconds.
    pub seconds: Option<f64>,
    /// Requests that wait for the same model.
    pub waiting: usize,
    /// How long those take that run or wait, in seconds, if all of them can be told.
    pub waiting_seconds: Option<f64>,
    /// Bytes of the model's weights that stay on its device.
    pub weight_bytes: Option<usize>,
    /// Bytes that its pictures take there besides, at most.
    pub activation_bytes: Option<usize>,
}

/// How long `work` takes by `estimate`, if that tells a time.
pub(super) fn seconds_by(estimate: &Estimate, card: &ModelCard, work: Work) -> Option<f64> {
    let usual = Work::usual(card, estimate.steps);
    Some(estimate.seconds? * work.amount() / usual.amount())
}

/// Bytes that `work` takes beside the weights, at most.
pub(super) fn activation_bytes(estimate: &Estimate, work: Work) -> Option<usize> {
    let most = estimate.bytes_per_pixel?.most;
    let fixed = estimate.plan.activation_bytes?.saturating_sub(estimate.plan.image_area * most);
    Some(fixed + work.made_pixels() * most)
}

/// Refuses what its model has no room for, even by the least that it takes. A plan that does
/// not fit by itself was somebody's choice: it refuses nothing.
///
/// # Errors
/// [`ServiceError::TooLarge`].
pub(super) fn check_room(estimate: &Estimate, work: Work) -> Result<(), ServiceError> {
    let plan = &estimate.plan;
    let (Some(free), Some(activations), Some(per_pixel), true) =
        (plan.free_bytes, plan.activation_bytes, estimate.bytes_per_pixel, plan.fits())
    else {
        return Ok(());
    };
    let room_bytes = free - plan.total_bytes.saturating_sub(activations);
    let needed_bytes = work.seen_pixels().saturating_mul(per_pixel.least);
    if needed_bytes <= room_bytes {
        return Ok(());
    }
    Err(ServiceError::TooLarge { needed_bytes, room_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BytesPerPixel, ModelPlan, PlannedComponent};

    const MIB: usize = 1 << 20;

    /// Of a model of 100 MiB that works on a megapixel, in a GiB.
    fn estimate() -> Estimate {
        let plan = ModelPlan {
            model: "test".to_owned(),
            pipeline: "Test".to_owned(),
            device: "cpu".to_owned(),
            dtype: "float32".to_owned(),
            image_area: MIB,
            components: vec![PlannedComponent::resident("all", 100 * MIB)],
            activation_bytes: Some(300 * MIB),
            total_bytes: 400 * MIB,
            free_bytes: Some(1024 * MIB),
        };
        let bytes_per_pixel = Some(BytesPerPixel { most: 200, least: 100 });
        let (width, height, steps) = (1024, 1024, 10);
        let faster = Vec::new();
        Estimate { plan, width, height, steps, seconds: Some(30.0), faster, bytes_per_pixel }
    }

    #[test]
    fn more_pixels_take_more_and_what_has_no_room_is_refused() {
        let estimate = estimate();
        let work = |megapixels: usize| Work::of_pixels(megapixels * MIB, megapixels * MIB, 10.0);

        assert_eq!(activation_bytes(&estimate, work(1)), Some(300 * MIB));
        assert_eq!(activation_bytes(&estimate, work(4)), Some(900 * MIB));
        // 924 MiB are left beside the weights, and a megapixel takes 100 of them at least.
        assert!(check_room(&estimate, work(9)).is_ok());
        let refused = check_room(&estimate, work(10)).unwrap_err();
        let expected = (1000 * MIB, 924 * MIB);
        let ServiceError::TooLarge { needed_bytes, room_bytes } = refused else { panic!() };
        assert_eq!((needed_bytes, room_bytes), expected);
    }

    #[test]
    fn a_plan_that_was_too_large_from_the_start_refuses_nothing() {
        let mut estimate = estimate();
        estimate.plan.free_bytes = Some(300 * MIB);

        assert!(check_room(&estimate, Work::of_pixels(64 * MIB, 64 * MIB, 1.0)).is_ok());
    }
}
