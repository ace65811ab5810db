//! What holds for every kernel: it agrees with its loop wherever its tensors begin,
//! passes NaN on, makes nothing of nothing, and counts beyond 2³¹ elements.

use std::collections::BTreeSet;

use candle_core::{D, DType, Device, Result, Tensor, WithDType};
use half::bf16;

use super::super::fp8::{Fp8Rows, scaled_product};
use super::super::softmax::softmax;
use super::super::unfold::{Window, unfold};
use super::super::{
    After, CfgRescale, Factors, HeadStream, LayerNorm, RmsNorm, channel_norm, euler_step,
    gated_add, gated_silu, gelu_tanh, guide, joint_heads, modulated_norm, silu,
};
use super::emulation::{Maker, made_by, numbers, zeros};
use super::non_finite::NUMBER_FORMATS;
use super::{Launch, MOST_BLOCKS, MOST_SHARED_BYTES, MOST_THREADS, length};

const HEADS: usize = 3;
/// Of a head: a size that packs divide, and one that they do not.
const HEAD_SIZES: [usize; 2] = [128, 42];
/// Channels of a picture, elements of an 8-bit row, tokens of a short stream.
const FEW: usize = 6;
/// Rows of what is made as a whole.
const ROWS: usize = 5;

/// A tensor that a case is given.
#[derive(Debug, Clone, Copy)]
enum Input {
    /// (1, rows, width)
    Tokens,
    /// (1, few, width)
    FewTokens,
    /// (width)
    Vector,
    /// (1, 1, width)
    Factors,
    /// (head size)
    HeadVector,
    /// (rows, head size / 2), f32
    Angles,
    /// (few, head size / 2), f32
    FewAngles,
    /// (1, few, rows, width)
    Picture,
    /// (1, few, 1, 1)
    Channels,
    /// (rows, few)
    ThinRows,
    /// (width, few)
    Matrix,
}

impl Input {
    fn shape(self, rows: usize, size: usize) -> Vec<usize> {
        let width = HEADS * size;
        match self {
            Self::Tokens => vec![1, rows, width],
            Self::FewTokens => vec![1, FEW, width],
            Self::Vector => vec![width],
            Self::Factors => vec![1, 1, width],
            Self::HeadVector => vec![size],
            Self::Angles => vec![rows, size / 2],
            Self::FewAngles => vec![FEW, size / 2],
            Self::Picture => vec![1, FEW, rows, width],
            Self::Channels => vec![1, FEW, 1, 1],
            Self::ThinRows => vec![rows, FEW],
            Self::Matrix => vec![width, FEW],
        }
    }

    fn axis_of_rows(self) -> Option<usize> {
        match self {
            Self::Tokens => Some(1),
            Self::Picture => Some(2),
            Self::Angles | Self::ThinRows => Some(0),
            Self::FewTokens
            | Self::Vector
            | Self::Factors
            | Self::HeadVector
            | Self::FewAngles
            | Self::Channels
            | Self::Matrix => None,
        }
    }

    /// Its elements go into the bare product, of which the kernel is given the result.
    fn gives_scales_alone(self) -> bool {
        matches!(self, Self::ThinRows | Self::Matrix)
    }

    fn dtype(self, dtype: DType) -> DType {
        if matches!(self, Self::Angles | Self::FewAngles) { DType::F32 } else { dtype }
    }
}

/// A step in one pass, what it is given, and how it is made.
type Case = (&'static str, &'static [Input], fn(&[Tensor]) -> Result<Tensor>);

use Input::{
    Angles, Channels, Factors as Row, FewAngles, FewTokens, HeadVector, Matrix, Picture, ThinRows,
    Tokens, Vector,
};

const CASES: [Case; 14] = [
    ("bias, GELU", &[Tokens, Vector], |of| gelu_tanh(&of[0], Some(&of[1]))),
    ("SiLU", &[Tokens], |of| silu(&of[0])),
    ("gated SiLU", &[Tokens, Tokens], |of| gated_silu(&of[0], &of[1])),
    ("modulated norm", &[Tokens, Row, Row, Row, Row], |of| {
        let norm = LayerNorm::new(of[0].dim(D::Minus1)?, 1e-6, of[0].dtype(), &Device::Cpu)?;
        modulated_norm(&of[0], &norm, late(&of[1], &of[2]), late(&of[3], &of[4]))
    }),
    ("gated add", &[Tokens, Tokens, Vector, Row, Row], |of| {
        gated_add(&of[0], &of[1], Some(&of[2]), late(&of[3], &of[4]))
    }),
    (
        "joint heads",
        &[FewTokens, Tokens, Vector, HeadVector, FewAngles, FewAngles, Angles, Angles],
        |of| {
            let norm = RmsNorm::new(of[3].clone(), 1e-6);
            let stream = |x, first: usize| HeadStream {
                x,
                bias: Some(&of[2]),
                norm: Some(&norm),
                rotation: Some((&of[first], &of[first + 1])),
            };
            joint_heads(stream(&of[0], 4), stream(&of[1], 6), HEADS)
        },
    ),
    ("guidance", &[Tokens, Tokens], |of| guide(&of[0], &of[1], 2.5, CfgRescale::OfConditional)),
    ("Euler step", &[Tokens, Tokens], |of| euler_step(&of[0], &of[1], -0.3)),
    ("channel norm", &[Picture, Channels], |of| channel_norm(&of[0], &of[1], After::Silu)),
    ("RMS norm", &[Tokens, Vector], |of| RmsNorm::new(of[1].clone(), 1e-6).forward(&of[0])),
    ("softmax", &[Tokens], |of| softmax(&of[0])),
    ("8-bit rows", &[Tokens], |of| Fp8Rows::quantize(&of[0])?.widen(of[0].dtype())),
    ("8-bit product", &[Tokens, ThinRows, Matrix], |of| {
        let (x, matrix) = (Fp8Rows::quantize(&of[1])?, Fp8Rows::quantize(&of[2])?);
        scaled_product(&of[0].squeeze(0)?, &x, &matrix)
    }),
    ("unfolding", &[Picture], |of| {
        // A larger kernel sees more elements than addresses are there for.
        let window = Window { kernel: 1, stride: 1, before: 0, row_length: of[0].dim(3)? };
        unfold(&of[0], window, 0..of[0].dim(2)?)
    }),
];

/// From the second token on others.
fn late<'a>(early: &'a Tensor, late: &'a Tensor) -> Factors<'a> {
    Factors { early, late: Some((1, late)) }
}

fn inputs(of: &[Input], size: usize, dtype: DType) -> Vec<Tensor> {
    let tensor = |(seed, input): (usize, &Input)| {
        numbers(&input.shape(ROWS, size), u32::try_from(seed).unwrap() + 1, input.dtype(dtype))
    };
    of.iter().enumerate().map(tensor).collect()
}

fn list(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// What loops and kernels make of `inputs`, and the kernels' names.
fn both(
    make: fn(&[Tensor]) -> Result<Tensor>,
    of: &[Tensor],
) -> ([Tensor; 2], BTreeSet<&'static str>) {
    let looped = make(of).unwrap();
    let (emulated, launched) = made_by(Maker::Kernels, || make(of).unwrap());
    ([looped, emulated], launched)
}

/// Both agree to a few units in the last place; NaN with NaN alone.
#[track_caller]
fn assert_alike(what: &str, [looped, emulated]: &[Tensor; 2]) {
    let units = [(DType::BF16, 1.0 / 32.0), (DType::F16, 1.0 / 256.0)];
    let unit =
        units.iter().find(|(dtype, _)| *dtype == looped.dtype()).map_or(1e-4, |(_, unit)| *unit);
    assert_eq!(looped.dims(), emulated.dims(), "{what}");
    for (at, (ours, theirs)) in list(emulated).into_iter().zip(list(looped)).enumerate() {
        let close = (ours - theirs).abs() <= unit * (1.0 + theirs.abs());
        assert!(close || ours.is_nan() && theirs.is_nan(), "{what}: {at} is {ours}, not {theirs}");
    }
}

/// `x` as a view that begins one number behind a multiple of every pack.
fn shifted(x: &Tensor) -> Tensor {
    let flat = x.flatten_all().unwrap();
    let count = x.elem_count();
    let pad = Tensor::full(f32::NAN, 65, &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap();
    let storage = Tensor::cat(&[&pad, &flat, &pad], 0).unwrap();
    storage.narrow(0, 65, count).unwrap().reshape(x.shape()).unwrap()
}

#[test]
fn every_kernel_is_among_the_cases_and_agrees_with_its_loop_wherever_its_tensors_begin() {
    let mut launched = BTreeSet::new();
    for dtype in NUMBER_FORMATS {
        for (name, of, make) in CASES {
            for size in HEAD_SIZES {
                let plain = inputs(of, size, dtype);
                let views = (0..plain.len()).map(|at| {
                    let mut inputs = plain.clone();
                    inputs[at] = shifted(&inputs[at]);
                    inputs
                });
                for inputs in std::iter::once(plain.clone()).chain(views) {
                    let (made, kernels) = both(make, &inputs);
                    assert_alike(&format!("{name} {dtype:?} {size}"), &made);
                    launched.extend(kernels);
                }
            }
        }
    }
    assert_eq!(launched.into_iter().collect::<Vec<_>>(), Vec::from_iter(names_in_sources()));
}

#[test]
fn eight_bit_rows_that_begin_where_a_card_would_fault_are_refused() {
    let rows = Fp8Rows::quantize(&numbers(&[ROWS, 128], 1, DType::BF16)).unwrap();
    let off = Fp8Rows { bytes: shifted(&rows.bytes), ..rows };

    let (refused, _) = made_by(Maker::Kernels, || off.widen(DType::BF16).unwrap_err());

    assert!(refused.to_string().contains("must begin at a multiple of 16"), "{refused}");
}

fn source(file: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/nn/kernels");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

/// All kernels that the sources declare.
fn names_in_sources() -> BTreeSet<String> {
    let between = |line: &str, before: &str, after: char| {
        Some(line.strip_prefix(before)?.split(after).next()?.to_owned())
    };
    let all = source("all.cu");
    let files = all.lines().filter_map(|line| between(line, "#include \"", '"'));
    let names = |file: String| -> Vec<String> {
        let declared =
            |line| between(line, "KERNEL(", ',').or_else(|| between(line, "ACTIVATION(", ','));
        source(&file).lines().filter_map(declared).collect()
    };
    files.flat_map(names).collect()
}

#[test]
fn every_kernel_passes_nan_on_as_its_loop_does() {
    for dtype in NUMBER_FORMATS {
        for (name, of, make) in CASES {
            for size in HEAD_SIZES {
                let whole = inputs(of, size, dtype);
                for (spoilt, input) in whole.iter().enumerate() {
                    let count = input.elem_count();
                    for place in [0, count / 2, count - 1] {
                        let mut list = list(input);
                        list[place] = f32::NAN;
                        let mut inputs = whole.clone();
                        inputs[spoilt] = Tensor::from_vec(list, input.shape(), &Device::Cpu)
                            .unwrap()
                            .to_dtype(input.dtype())
                            .unwrap();
                        let what = format!("{name} {dtype:?} {size}, NaN at {place} of {spoilt}");

                        let (made, _) = both(make, &inputs);

                        assert_alike(&what, &made);
                        let lost = !self::list(&made[1]).iter().any(|x| x.is_nan());
                        assert!(!lost || of[spoilt].gives_scales_alone(), "{what}: lost");
                    }
                }
            }
        }
    }
}

#[test]
fn of_nothing_loops_and_kernels_make_nothing() {
    for (name, of, make) in CASES {
        let empty: Vec<Tensor> = of
            .iter()
            .map(|input| Tensor::zeros(input.shape(0, 128), input.dtype(DType::BF16), &Device::Cpu))
            .collect::<Result<_>>()
            .unwrap();

        let ([looped, emulated], launched) = both(make, &empty);

        // The other stream has tokens, and a matrix has rows, even where there is nothing.
        let whole = [looped.elem_count(), emulated.elem_count()];
        assert!(name == "joint heads" || whole == [0, 0], "{name}: {whole:?}");
        let others = ["joint_heads", "fp8_round"];
        assert!(launched.iter().all(|kernel| others.contains(kernel)), "{name}: {launched:?}");
        assert_alike(name, &[looped, emulated]);
    }
}

/// `small` at the end of `rows` rows along `axis`; zeros before it.
fn at_the_end<T: WithDType>(small: &Tensor, axis: usize, rows: usize) -> Tensor {
    let dims = small.dims();
    let inner: usize = dims[axis + 1..].iter().product();
    let outer: usize = dims[..axis].iter().product();
    let part = dims[axis] * inner;
    let numbers: Vec<T> = small.flatten_all().unwrap().to_vec1().unwrap();
    let mut large = zeros::<T>(outer * rows * inner);
    for (index, part_of) in numbers.chunks(part).enumerate() {
        let end = (index + 1) * rows * inner;
        large[end - part..end].copy_from_slice(part_of);
    }
    let mut shape = dims.to_vec();
    shape[axis] = rows;
    Tensor::from_vec(large, shape, &Device::Cpu).unwrap()
}

/// Elements of the largest tensor of a case: an `int` holds no index of its end.
const MANY: usize = (1 << 31) + 1_000_000;

#[test]
fn kernels_count_beyond_what_32_bits_hold() {
    for (name, of, make) in CASES {
        for size in HEAD_SIZES {
            let of_rows = of.iter().filter(|input| input.axis_of_rows().is_some());
            let row = of_rows.map(|input| input.shape(1, size).iter().product()).max().unwrap_or(1);
            let rows = MANY.div_ceil(row);
            let small = inputs(of, size, DType::BF16);
            let large: Vec<Tensor> = of
                .iter()
                .zip(&small)
                .map(|(input, small)| match (input.axis_of_rows(), input.dtype(DType::BF16)) {
                    (None, _) => small.clone(),
                    (Some(axis), DType::F32) => at_the_end::<f32>(small, axis, rows),
                    (Some(axis), _) => at_the_end::<bf16>(small, axis, rows),
                })
                .collect();

            let (made, _) = made_by(Maker::Ends, || make(&large).unwrap());

            assert!(made.elem_count() > i32::MAX as usize, "{name}");
            let expected = make(&small).unwrap();
            let end = |x: &Tensor| {
                let last = 32;
                x.flatten_all().unwrap().narrow(0, x.elem_count() - last, last).unwrap()
            };
            assert_alike(&format!("{name} {size}"), &[end(&expected), end(&made)]);
        }
    }
}

#[test]
fn what_no_card_starts_is_refused_by_name() {
    let fitting =
        Launch { kernel: "k", blocks: 1, threads: 96, shared: 96, call: [0_u8; 64], pack: 1 };
    assert!(fitting.expect_launchable().is_ok());
    for refused in [
        Launch { blocks: 0, ..fitting },
        Launch { blocks: MOST_BLOCKS + 1, ..fitting },
        Launch { threads: 0, ..fitting },
        Launch { threads: 48, ..fitting },
        Launch { threads: MOST_THREADS + 32, ..fitting },
        Launch { shared: MOST_SHARED_BYTES / 4 + 1, ..fitting },
    ] {
        let error = refused.expect_launchable().unwrap_err().to_string();
        assert!(error.contains("k cannot start"), "{error}");
    }
    let large =
        Launch { kernel: "k", blocks: 1, threads: 96, shared: 0, call: [0_u8; 4097], pack: 1 };
    assert!(large.expect_launchable().is_err());
    let same = format!("#define MOST_THREADS {MOST_THREADS}\n");
    assert!(source("platform.h").contains(&same));
}

#[test]
fn a_length_leaves_room_to_step_past_its_end() {
    let most = i32::MAX as usize;
    assert_eq!(length(12_288).unwrap(), 12_288);
    assert!(length(most).is_err() && length(most - MOST_THREADS).is_err());
    assert!(length(most - 4 * MOST_THREADS).is_ok());
}
