#![expect(clippy::cast_possible_truncation, reason = "remainders below 256")]

use super::*;
use crate::domain::{GuidanceScale, RgbImage, Steps, Strength, TaskKinds};
use crate::imaging::resample::{Resampler, resize};
use crate::model::{EditKind, GuidanceParameter, RequestDefaults};

fn model() -> ModelCard {
    ModelCard {
        id: "m".to_owned(),
        pipeline: "P".to_owned(),
        description: String::new(),
        instructions: Vec::new(),
        tasks: TaskKinds::default(),
        defaults: RequestDefaults {
            num_inference_steps: Steps::new(4).unwrap(),
            guidance: GuidanceScale::new(1.0).unwrap(),
            negative_prompt: None,
            strength: Strength::new(0.6).unwrap(),
        },
        max_input_images: 1,
        size_multiple: 16,
        max_output_area: 1000 * 1000,
        image_area: 512 * 512,
        area_range: None,
        fills_beyond_input: true,
        edit_kind: EditKind::Instruction,
        guidance_parameter: GuidanceParameter::TrueCfgScale,
        takes_transparency: false,
        has_condition_picture: false,
        is_tunable: false,
    }
}

/// A picture in which every pixel can be told from its neighbours.
fn picture(width: usize, height: usize) -> Picture {
    let pixel = |index: usize| {
        let (x, y) = (index % width, index / width);
        [(x % 251) as u8, (y % 241) as u8, ((x + y) % 7) as u8]
    };
    RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap().into()
}

fn edit(width: usize, height: usize) -> Task {
    Task::Edit { images: vec![picture(width, height)] }
}

fn plan(task: &Task, size: SizeChoice) -> SizePlan {
    planned(task, &model(), size).0
}

/// The size_plan, and the task as the model takes it.
fn planned(task: &Task, model: &ModelCard, size: SizeChoice) -> (SizePlan, Task) {
    SizePlan::plan(task.clone(), model, Framing { size, preserve_unmasked: true }).unwrap()
}

/// What comes back if the model returns what it is shown.
fn echoed(task: Task, size: SizeChoice) -> (OutputSize, Picture, Picture) {
    let (size_plan, task) = planned(&task, &model(), size);
    let shown = first_picture(&task).unwrap().clone();
    (size_plan.model_size, shown.clone(), size_plan.finish(shown))
}

fn exact(width: usize, height: usize) -> SizeChoice {
    SizeChoice::Exact(ImageSize::new(width, height).unwrap())
}

#[test]
fn a_picture_of_a_fitting_size_comes_back_without_any_resampling() {
    for (width, height, shown_width, shown_height) in
        [(512, 512, 512, 512), (601, 399, 608, 400), (511, 513, 512, 528)]
    {
        let (size, shown, back) = echoed(edit(width, height), SizeChoice::Auto);

        assert_eq!(size, OutputSize::AsInput);
        assert_eq!((shown.width(), shown.height()), (shown_width, shown_height));
        assert_eq!(back, picture(width, height));
    }
}

#[test]
fn the_grid_is_filled_by_repeating_the_last_pixels() {
    let (_, shown, _) = echoed(edit(601, 399), SizeChoice::Auto);

    // Three columns are added at the left and four at the right, one row at the bottom.
    let pixel = |x: usize, y: usize| shown.colour().pixels()[(y * 608 + x) * 3..][..3].to_vec();
    assert_eq!(pixel(0, 10), pixel(3, 10));
    assert_eq!(pixel(607, 10), pixel(603, 10));
    assert_ne!(pixel(603, 10), pixel(602, 10));
    assert_eq!(pixel(20, 399), pixel(20, 398));
}

#[test]
fn what_the_model_mirrors_comes_back_where_it_was() {
    let mirrored = |picture: &Picture| -> Picture {
        let rows = picture.colour().pixels().chunks_exact(picture.width() * 3);
        let pixels = rows.flat_map(|row| row.as_chunks::<3>().0.iter().rev().flatten().copied());
        RgbImage::new(picture.width(), picture.height(), pixels.collect()).unwrap().into()
    };
    let task = edit(602, 400); // 608 on the grid
    let (size_plan, task) = planned(&task, &model(), SizeChoice::Auto);

    let shown = first_picture(&task).unwrap().clone();

    assert_eq!(size_plan.finish(mirrored(&shown)), mirrored(&picture(602, 400)));
}

#[test]
fn small_and_large_pictures_are_worked_on_at_the_models_area_and_come_back_in_their_size() {
    for (width, height) in [(64, 48), (1023, 777), (7, 5)] {
        let (size, shown, back) = echoed(edit(width, height), SizeChoice::Auto);

        assert_eq!(size, OutputSize::AsInput);
        let share = shown.colour().pixels().len() as f64 / (512.0 * 512.0 * 3.0);
        assert!((0.85..1.15).contains(&share), "{width}x{height}: {share}");
        assert_eq!((shown.width() % 32, shown.height() % 32), (0, 0));
        assert_eq!((back.width(), back.height()), (width, height));
    }
}

#[test]
fn a_model_of_a_small_area_keeps_the_shape_of_a_picture_that_is_scaled_to_it() {
    let small = ModelCard { image_area: 128 * 128, size_multiple: 8, ..model() };
    let task = edit(512, 384);
    let (size_plan, task) = planned(&task, &small, SizeChoice::Auto);

    let shown = first_picture(&task).unwrap().clone();

    assert_eq!((shown.width(), shown.height()), (144, 112));
    let back = size_plan.finish(shown);
    assert_eq!((back.width(), back.height()), (512, 384));
}

#[test]
fn what_is_larger_than_the_model_gives_back_is_shrunk_and_said_so() {
    let task = edit(2000, 1000);
    let size_plan = plan(&task, SizeChoice::Auto);

    let back = size_plan.finish(picture(704, 352));

    assert_eq!((back.width(), back.height()), (1414, 707));
    assert!(size_plan.notes[0].contains("1414x707"));
}

#[test]
fn a_named_size_on_the_grid_is_the_models_own_business() {
    let size_plan = plan(&edit(100, 80), exact(320, 240));

    assert_eq!(size_plan.model_size, OutputSize::Exact(ImageSize::new(320, 240).unwrap()));
    assert_eq!((size_plan.before, size_plan.after), (Fit::Keep, Fit::Keep));
}

#[test]
fn a_named_size_off_the_grid_is_cut_from_the_centre_of_the_next_larger_one() {
    let size_plan = plan(&Task::Generate, exact(321, 250));

    assert_eq!(size_plan.model_size, OutputSize::Exact(ImageSize::new(336, 256).unwrap()));
    let back = size_plan.finish(picture(336, 256));
    assert_eq!((back.width(), back.height()), (321, 250));
    assert_eq!(back.colour().pixels()[..2], [7, 3]);
    // The input's own size lies over the input instead.
    assert_eq!(plan(&edit(321, 250), exact(321, 250)).model_size, OutputSize::AsInput);
}

#[test]
fn a_size_beyond_the_model_is_refused_by_name() {
    let framing = Framing { size: exact(1001, 1000), preserve_unmasked: true };

    let error = SizePlan::plan(Task::Generate, &model(), framing).unwrap_err();

    assert_eq!(error.field, "size");
}

#[test]
fn what_a_mask_spares_comes_back_bit_by_bit_whatever_the_model_worked_at() {
    for (width, height) in [(512, 512), (601, 399), (200, 150)] {
        let mask = (0..width * height).map(|at| if at % width < width / 2 { 255 } else { 0 });
        let task = Task::Inpaint {
            image: picture(width, height),
            mask: GreyImage::new(width, height, mask.collect()).unwrap(),
            strength: Strength::new(1.0).unwrap(),
            crop_padding: None,
        };
        let (size_plan, task) = planned(&task, &model(), SizeChoice::Auto);
        let Task::Inpaint { image, mask, .. } = task else { unreachable!() };
        assert_eq!((image.width(), image.height()), (mask.width(), mask.height()));

        let made = RgbImage::filled(image.width(), image.height(), [250, 250, 250]);
        let back = size_plan.finish(made.into());

        let input = picture(width, height);
        for (index, (old, new)) in
            input.colour().pixels().iter().zip(back.colour().pixels()).enumerate()
        {
            let x = index / 3 % width;
            assert!(x < width / 2 || old == new, "pixel {} of {width}x{height}", index / 3);
            assert!(x > width / 4 || *new == 250, "pixel {} of {width}x{height}", index / 3);
        }
    }
}

#[test]
fn a_mask_with_a_named_size_is_laid_over_at_full_resolution_and_then_scaled() {
    let task = Task::Inpaint {
        image: picture(200, 150),
        mask: GreyImage::new(200, 150, vec![0; 200 * 150]).unwrap(),
        strength: Strength::new(1.0).unwrap(),
        crop_padding: None,
    };
    let size_plan = plan(&task, exact(320, 240));

    let back = size_plan.finish(RgbImage::filled(320, 240, [9, 9, 9]).into());

    let scaled = resize(picture(200, 150).colour(), 320, 240, Resampler::PillowLanczos);
    assert_eq!(back.colour().pixels(), scaled.pixels());
}

/// A model that is known to work at about 512x512 pixels only.
fn particular(fills_beyond_input: bool) -> ModelCard {
    let area_range = Some(AreaRange::around(512 * 512));
    ModelCard { area_range, fills_beyond_input, ..model() }
}

#[test]
fn a_size_at_which_the_model_does_not_work_is_made_at_its_area_in_the_asked_shape_and_scaled() {
    for (width, height, work) in [(96, 64, "640x416"), (1200, 800, "640x416"), (64, 64, "512x512")]
    {
        for task in [Task::Generate, edit(100, 80)] {
            let (size_plan, _) = planned(&task, &particular(true), exact(width, height));

            let OutputSize::Exact(made) = size_plan.model_size else { panic!("{size_plan:?}") };
            assert_eq!(made.to_string(), work);
            let back = size_plan.finish(picture(made.width(), made.height()));
            assert_eq!((back.width(), back.height()), (width, height));
            assert!(size_plan.notes[0].contains("'size'"), "{:?}", size_plan.notes);
            assert!(size_plan.notes[0].contains(work), "{:?}", size_plan.notes);
        }
    }
}

#[test]
fn a_size_at_which_the_model_works_is_made_as_it_is() {
    let (size_plan, _) = planned(&Task::Generate, &particular(true), exact(640, 400));

    assert_eq!(size_plan.model_size, OutputSize::Exact(ImageSize::new(640, 400).unwrap()));
    assert!(size_plan.notes.is_empty());
}

#[test]
fn an_input_in_the_asked_shape_is_worked_on_as_a_whole_at_the_models_area() {
    let (size_plan, task) = planned(&edit(100, 80), &particular(true), exact(50, 40));

    let shown = first_picture(&task).unwrap().clone();

    assert_eq!(size_plan.model_size, OutputSize::AsInput);
    assert_eq!((shown.width(), shown.height()), (576, 448));
    let back = size_plan.finish(shown);
    assert_eq!((back.width(), back.height()), (50, 40));
}

#[test]
fn a_model_that_fills_nothing_gets_the_middle_of_its_input_in_the_asked_shape() {
    let input = picture(600, 400);
    for (size, work) in [(exact(512, 512), (512, 512)), (exact(100, 100), (512, 512))] {
        let (size_plan, task) = planned(&edit(600, 400), &particular(false), size);

        let shown = first_picture(&task).unwrap().clone();

        assert_eq!(size_plan.model_size, OutputSize::AsInput);
        assert_eq!((shown.width(), shown.height()), work);
        let note = &size_plan.notes[0];
        assert!(note.contains("600x400") && note.contains("400x400"), "{note}");
        // The picture's own centre is in the middle.
        let middle = |picture: &Picture| {
            let (x, y) = (picture.width() / 2, picture.height() / 2);
            i32::from(picture.colour().pixels()[(y * picture.width() + x) * 3 + 1])
        };
        assert!((middle(&shown) - middle(&input)).abs() <= 2);
    }
}

#[test]
fn a_model_that_fills_nothing_keeps_the_whole_of_an_input_in_the_asked_shape() {
    let (size_plan, task) = planned(&edit(300, 200), &particular(false), exact(720, 480));

    let shown = first_picture(&task).unwrap();

    let scaled = resize(picture(300, 200).colour(), 720, 480, Resampler::PillowLanczos);
    assert_eq!(shown.colour(), &scaled);
    assert!(size_plan.notes.is_empty(), "{:?}", size_plan.notes);
}

#[test]
fn under_a_mask_a_picture_is_cut_to_the_asked_shape_and_never_stretched() {
    let task = Task::Inpaint {
        image: picture(600, 400),
        mask: GreyImage::new(600, 400, vec![0; 600 * 400]).unwrap(),
        strength: Strength::new(1.0).unwrap(),
        crop_padding: None,
    };
    let (size_plan, task) = planned(&task, &particular(true), exact(400, 400));

    let Task::Inpaint { image, mask, .. } = task else { unreachable!() };
    assert_eq!((image.width(), image.height()), (mask.width(), mask.height()));
    let back = size_plan.finish(RgbImage::filled(400, 400, [9, 9, 9]).into());

    // Nothing was to be painted: what comes back is the middle, bit by bit.
    let input = picture(600, 400);
    let middle = Fit::CutCentre(ImageSize::new(400, 400).unwrap()).apply(&input);
    assert_eq!(back.colour(), middle.colour());
    assert!(size_plan.notes[0].contains("middle"), "{:?}", size_plan.notes);
}

#[test]
fn what_the_reference_stretches_is_stretched_and_said_so() {
    let image = picture(600, 400);
    let task = Task::ImageToImage { image, strength: Strength::new(0.5).unwrap() };
    let (size_plan, task) = planned(&task, &model(), exact(320, 320));

    assert_eq!(first_picture(&task).unwrap(), &picture(600, 400));
    assert!(size_plan.notes[0].contains("stretched"), "{:?}", size_plan.notes);
}
