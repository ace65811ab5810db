//! Elements that diffusers made, and how ours are held against them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

/// The folder of fixtures: that of the repository, or the one that the variable
/// `FIXTURES` names, made by `tests/data/make_fixtures.py --seed S --out DIR`.
#[expect(clippy::disallowed_methods, reason = "a switch for people who run the tests")]
pub(crate) fn fixtures() -> PathBuf {
    std::env::var_os("FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures"),
        PathBuf::from,
    )
}

/// A file of golden tensors.
pub(crate) struct Golden {
    name: String,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    /// Reads `name`.safetensors below the folder of fixtures.
    pub(crate) fn read(name: &str) -> Self {
        let path = fixtures().join(format!("{name}.safetensors"));
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Self { name: name.to_owned(), tensors }
    }

    /// The tensor `name` as it is stored.
    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name)).clone()
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The integers of tensor `name`, flat.
    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        self.tensor(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Asserts that `ours` differs nowhere by more than `tolerance` from tensor
    /// `name`, dimensions of length one aside.
    pub(crate) fn assert_close(&self, name: &str, ours: &Tensor, tolerance: f32) {
        assert_close(&format!("{} {name}", self.name), ours, &self.tensor(name), tolerance);
    }
}

/// Asserts that two tensors differ nowhere by more than `tolerance`.
pub(crate) fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    let essential = |tensor: &Tensor| -> Vec<usize> {
        tensor.dims().iter().copied().filter(|side| *side != 1).collect()
    };
    assert_eq!(essential(ours), essential(theirs), "{what}: shapes");
    let flat = |tensor: &Tensor| -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let largest = flat(ours).iter().zip(flat(theirs)).map(|(a, b)| (a - b).abs()).fold(
        0.0_f32,
        |largest, difference| {
            if difference.is_nan() { f32::NAN } else { largest.max(difference) }
        },
    );
    println!("{what}: largest difference {largest:e}");
    assert!(largest <= tolerance, "{what}: differs by {largest}, {tolerance} is allowed");
}

/// Asserts that two pictures differ by at most one level anywhere and by at most
/// 0.01 levels on average: what two builds of the reference differ by.
pub(crate) fn assert_same_picture(what: &str, ours: &[u8], theirs: &Tensor) {
    let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.len(), theirs.len(), "{what}: number of bytes");
    let differences = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
    let largest = differences.clone().max().unwrap();
    let mean = differences.map(f64::from).sum::<f64>() / theirs.len() as f64;
    println!("{what}: largest difference {largest}, mean {mean:.5}");
    assert!(largest <= 1, "{what}: a value is off by {largest}");
    assert!(mean <= 0.01, "{what}: mean difference {mean}");
}
