//! Safetensors files: where each tensor lies in them, without reading it.

use std::collections::HashMap;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::mapped::Place;
use super::weight_files::{WeightFile, WeightFiles, shards};
use super::{CheckpointError, Snapshot, content};

/// The open safetensors files of one component.
pub(super) struct TensorFiles {
    buffers: Vec<Buffer>,
    entries: HashMap<String, Entry>,
}

/// Where a tensor lies.
struct Entry {
    buffer: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// Bytes of the buffer.
    range: std::ops::Range<usize>,
}

enum Buffer {
    Mapped(memmap2::Mmap),
    Embedded(&'static [u8]),
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

impl TensorFiles {
    /// Opens the weights of `component` that [`WeightFiles`] chooses.
    pub(super) fn open(
        snapshot: &Snapshot,
        component: &str,
        stem: &str,
        canonical: fn(&str) -> String,
    ) -> Result<Self, CheckpointError> {
        let mut files = Self { buffers: Vec::new(), entries: HashMap::new() };
        for name in file_names(snapshot, component, stem)? {
            files.add(snapshot, &format!("{component}/{name}"), canonical)?;
        }
        Ok(files)
    }

    /// The one safetensors file `file`, and its metadata.
    pub(super) fn open_one(
        snapshot: &Snapshot,
        file: &str,
    ) -> Result<(Self, HashMap<String, String>), CheckpointError> {
        let mut files = Self { buffers: Vec::new(), entries: HashMap::new() };
        let metadata = files.add(snapshot, file, str::to_owned)?;
        Ok((files, metadata))
    }

    fn add(
        &mut self,
        snapshot: &Snapshot,
        file: &str,
        canonical: fn(&str) -> String,
    ) -> Result<HashMap<String, String>, CheckpointError> {
        let buffer = open_buffer(snapshot, file)?;
        let malformed = |reason| CheckpointError::Malformed { file: file.to_owned(), reason };
        let broken = |error| {
            let known = content::of_weights(buffer.bytes());
            let known = known.unwrap_or_else(|| format!("is not whole: {error}"));
            malformed(format!("{known} (expected a safetensors file)"))
        };
        SafeTensors::deserialize(buffer.bytes()).map_err(broken)?;
        let (header_bytes, header) = SafeTensors::read_metadata(buffer.bytes()).map_err(broken)?;
        // The file starts with the header's length in eight bytes.
        let data_start = 8 + header_bytes;
        for (name, info) in header.tensors() {
            let (begin, end) = info.data_offsets;
            let entry = Entry {
                buffer: self.buffers.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: data_start + begin..data_start + end,
            };
            if self.entries.insert(canonical(&name), entry).is_some() {
                return Err(malformed(format!("has {name}, which an earlier file has, too")));
            }
        }
        self.buffers.push(buffer);
        Ok(header.metadata().clone().unwrap_or_default())
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// How many numbers the files hold.
    pub(super) fn elements(&self) -> usize {
        let counts = self.entries.values().map(|entry| entry.shape.iter().product::<usize>());
        counts.fold(0, usize::saturating_add)
    }

    /// Asks the system to have the tensor `name` read from the disk. Returns at once.
    pub(super) fn read_ahead(&self, name: &str) {
        #[cfg(unix)]
        if let Some(entry) = self.entries.get(name)
            && let Buffer::Mapped(map) = &self.buffers[entry.buffer]
        {
            // Advice only: where it is refused, the tensor is read when it is taken.
            let (start, length) = (entry.range.start, entry.range.len());
            _ = map.advise_range(memmap2::Advice::WillNeed, start, length);
        }
    }

    /// The tensor `name`, or why it cannot be taken with this shape.
    pub(super) fn find(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Option<Result<TensorView<'_>, String>> {
        let entry = self.entries.get(name)?;
        if entry.shape != shape {
            return Some(Err(format!("{name} has shape {:?}, expected {shape:?}", entry.shape)));
        }
        self.find_any(name)
    }

    /// The tensor `name` of whatever shape, or why it cannot be taken.
    pub(super) fn find_any(&self, name: &str) -> Option<Result<TensorView<'_>, String>> {
        let known = [safetensors::Dtype::F32, safetensors::Dtype::BF16, safetensors::Dtype::F16];
        self.find_of(name, &known)
    }

    /// The tensor `name` of whatever shape, if it is stored as one of `known`, or why it
    /// cannot be taken.
    pub(super) fn find_of(
        &self,
        name: &str,
        known: &[safetensors::Dtype],
    ) -> Option<Result<TensorView<'_>, String>> {
        let entry = self.entries.get(name)?;
        if !known.contains(&entry.dtype) {
            let dtype = entry.dtype;
            return Some(Err(format!(
                "{name} is stored as {dtype:?}; float32, bfloat16 and float16 are supported"
            )));
        }
        let data = &self.buffers[entry.buffer].bytes()[entry.range.clone()];
        let view = TensorView::new(entry.dtype, entry.shape.clone(), data);
        Some(view.map_err(|error| format!("{name}: {error}")))
    }
}

impl TensorFiles {
    /// Where the tensor `name` of `shape` lies.
    pub(super) fn place_of(&self, name: &str, shape: &[usize]) -> Option<Place> {
        let entry = self.entries.get(name).filter(|entry| entry.shape == shape)?;
        let (buffer, range, dtype) = (entry.buffer, entry.range.clone(), entry.dtype);
        Some(Place { buffer, range, dtype })
    }

    /// The bytes at `place`.
    pub(super) fn bytes_at(&self, place: &Place) -> Option<&[u8]> {
        self.buffers.get(place.buffer)?.bytes().get(place.range.clone())
    }

    /// The one finite number that the tensor `name` holds, of whatever format and rank.
    pub(super) fn number(&self, name: &str) -> Result<f64, String> {
        let entry = self.entries.get(name).ok_or_else(|| format!("{name} is missing"))?;
        let bytes = &self.buffers[entry.buffer].bytes()[entry.range.clone()];
        if entry.shape.iter().product::<usize>() != 1 {
            return Err(format!("{name} has shape {:?}, expected one number", entry.shape));
        }
        let number = number_in(entry.dtype, bytes)
            .ok_or_else(|| format!("{name} is stored as {:?}, which is no number", entry.dtype))?;
        let finite = number.is_finite().then_some(number);
        finite.ok_or_else(|| format!("{name} is {number}, expected a finite number"))
    }
}

/// The number that `bytes` are in the format `dtype`.
fn number_in(dtype: safetensors::Dtype, bytes: &[u8]) -> Option<f64> {
    use safetensors::Dtype;
    match (dtype, bytes) {
        (Dtype::F64, _) => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
        (Dtype::F32, _) => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::F16, _) => Some(half::f16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::BF16, _) => Some(half::bf16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::I64, _) => Some(i64::from_le_bytes(bytes.try_into().ok()?) as f64),
        (Dtype::U64, _) => Some(u64::from_le_bytes(bytes.try_into().ok()?) as f64),
        (Dtype::I32, _) => Some(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::U32, _) => Some(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::I16, _) => Some(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::U16, _) => Some(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::I8, _) => Some(i8::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::U8, [byte]) => Some((*byte).into()),
        _ => None,
    }
}

/// The safetensors files that hold the weights of `component`. What is chosen where
/// there was a choice is told in the log.
fn file_names(
    snapshot: &Snapshot,
    component: &str,
    stem: &str,
) -> Result<Vec<String>, CheckpointError> {
    let names = snapshot.names_in(component);
    let no_weights = |reason| CheckpointError::NoWeights {
        file: format!("{component}/{stem}.safetensors"),
        reason,
    };
    let chosen = WeightFiles::choose(stem, &names).map_err(no_weights)?;
    if let Some(variant) = &chosen.variant {
        tracing::warn!(
            component,
            variant,
            "there are no weights but of a variant, which are taken"
        );
    }
    let index = match chosen.first {
        WeightFile::Single(taken) => {
            log_choice(component, &taken, chosen.passed_over.as_deref());
            return Ok(vec![taken]);
        }
        WeightFile::Index(index) => index,
    };
    let file = format!("{component}/{index}");
    let malformed = |reason| CheckpointError::Malformed { file: file.clone(), reason };
    let shards = shards(&snapshot.text(&file)?).map_err(malformed)?;
    let missing = shards.iter().find(|shard| !names.contains(shard));
    match (missing, chosen.passed_over) {
        (Some(shard), Some(single)) => {
            tracing::warn!(component, index, shard, taken = single, "a shard is missing");
            Ok(vec![single])
        }
        (Some(shard), None) => Err(snapshot.missing(&format!("{component}/{shard}"))),
        (None, passed_over) => {
            log_choice(component, &index, passed_over.as_deref());
            Ok(shards)
        }
    }
}

fn log_choice(component: &str, taken: &str, passed_over: Option<&str>) {
    if let Some(passed_over) = passed_over {
        tracing::warn!(
            component,
            taken,
            passed_over,
            "there are two sets of weights; the one is taken that its library takes"
        );
    }
}

#[expect(unsafe_code, reason = "memory-mapped weights: the one place that maps files")]
fn open_buffer(snapshot: &Snapshot, file: &str) -> Result<Buffer, CheckpointError> {
    let (Snapshot::Directory(_), Some(path)) = (snapshot, snapshot.path(file)) else {
        return match snapshot.bytes(file)? {
            std::borrow::Cow::Borrowed(bytes) => Ok(Buffer::Embedded(bytes)),
            std::borrow::Cow::Owned(_) => Err(snapshot.missing(file)),
        };
    };
    if !path.is_file() {
        return Err(snapshot.missing(file));
    }
    let unreadable = |source| CheckpointError::Unreadable { path: path.clone(), source };
    let handle = std::fs::File::open(&path).map_err(unreadable)?;
    // SAFETY: a checkpoint must not be changed while the program runs (weights may
    // be read again for each use): the documentation says so, downloads replace
    // files by renaming, and nothing else writes there.
    let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(unreadable)?;
    Ok(Buffer::Mapped(map))
}
