//! The tensors of one component.
//!
//! A component walks the names of its checkpoint with [`Weights::at`] and takes
//! each tensor with the shape that it needs. What does not fit is noted, not
//! thrown: [`Weights::finish`] names everything missing, misshapen or left over
//! in one message.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::{CheckpointError, Lora, Snapshot};

/// How many faults a message lists before it only counts.
const LISTED_FAULTS: usize = 20;

/// A place in a component's tree of tensors. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    store: Arc<Store>,
    loras: Arc<[Lora]>,
    prefix: String,
    dtype: DType,
    device: Device,
}

struct Store {
    /// The component's folder, for messages.
    component: String,
    /// Where tensors come from; `None` hands out placeholders for any name.
    files: Option<TensorFiles>,
    account: Mutex<Account>,
}

/// What has been asked of a [`Store`].
#[derive(Default)]
struct Account {
    requested: BTreeMap<String, Vec<usize>>,
    ignored: HashSet<String>,
    faults: Vec<String>,
    bytes: usize,
}

impl Weights {
    /// Opens the safetensors files of `component`: `STEM.safetensors`, or the
    /// shards that `STEM.safetensors.index.json` names, memory-mapped.
    ///
    /// Tensors are converted to `dtype` and moved to `device` when taken.
    /// `canonical` turns a stored name into the one that the component asks for.
    ///
    /// # Errors
    /// [`CheckpointError`] if a file is missing or is not a safetensors file.
    pub fn open(
        snapshot: &Snapshot,
        component: &str,
        stem: &str,
        (dtype, device): (DType, &Device),
        canonical: fn(&str) -> String,
    ) -> Result<Self, CheckpointError> {
        let files = TensorFiles::open(snapshot, component, stem, canonical)?;
        Ok(Self::from_store(component, Some(files), dtype, device))
    }

    /// Weights without files: hands out a placeholder of any shape, without
    /// allocating it, and records what was asked for. With it a test learns
    /// which tensors a configuration needs.
    #[must_use]
    pub fn recording(component: &str, dtype: DType) -> Self {
        Self::from_store(component, None, dtype, &Device::Cpu)
    }

    fn from_store(
        component: &str,
        files: Option<TensorFiles>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let store = Store { component: component.to_owned(), files, account: Mutex::default() };
        Self {
            store: Arc::new(store),
            loras: Arc::new([]),
            prefix: String::new(),
            dtype,
            device: device.clone(),
        }
    }

    /// The same, with what `loras` change added to each tensor when it is taken.
    /// [`Weights::finish`] reports those of their keys that match no tensor.
    #[must_use]
    pub fn merging(self, loras: Vec<Lora>) -> Self {
        Self { loras: loras.into(), ..self }
    }

    /// The place `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        Self { prefix: self.full_name(&name.to_string()), ..self.clone() }
    }

    /// The same place, handing out tensors of another number format.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// Number format of the tensors handed out.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device of the tensors handed out.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Takes the tensor `name`, which must have `shape`.
    ///
    /// A tensor that is missing or misshapen is noted, and a placeholder of
    /// zeros returned, so that all faults come to light together.
    ///
    /// # Errors
    /// A candle error if the conversion or the move to the device fails.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
        let name = self.full_name(name);
        let shape = shape.into();
        let first_time = self.request(&name, &shape);
        let Some(files) = &self.store.files else {
            return self.placeholder(shape);
        };
        let Some(found) = files.find(&name, shape.dims()) else {
            self.note(format!("{name} is missing"));
            return self.placeholder(shape);
        };
        match found {
            Ok(view) => {
                let tensor = self.changed(&name, view.load(&Device::Cpu)?)?.to_dtype(self.dtype)?;
                if first_time {
                    self.account().bytes += tensor.elem_count() * self.dtype.size_in_bytes();
                }
                tensor.to_device(&self.device)
            }
            Err(fault) => {
                self.note(fault);
                self.placeholder(shape)
            }
        }
    }

    /// `stored` with what the LoRAs add to it, summed in 32 bits.
    fn changed(&self, name: &str, stored: Tensor) -> candle_core::Result<Tensor> {
        let mut tensor = stored;
        for lora in self.loras.iter() {
            match lora.change(name, tensor.dims())? {
                Some(Ok(change)) => tensor = (tensor.to_dtype(DType::F32)? + change)?,
                Some(Err(fault)) => self.note(fault),
                None => {}
            }
        }
        Ok(tensor)
    }

    /// Accounts for the tensor `name` of `shape` that the component does not
    /// use. It need not be there.
    pub fn skip(&self, name: &str, shape: impl Into<Shape>) {
        let name = self.full_name(name);
        let shape = shape.into();
        self.request(&name, &shape);
        let found = self.store.files.as_ref().and_then(|files| files.find(&name, shape.dims()));
        if let Some(Err(fault)) = found {
            self.note(fault);
        }
    }

    /// Accounts for the tensor `name`, whatever it is, which carries nothing:
    /// such as a buffer that some versions of a library have saved.
    pub fn ignore(&self, name: &str) {
        self.account().ignored.insert(self.full_name(name));
    }

    /// This place as candle's layers take it: they draw on the same account.
    #[must_use]
    pub fn var_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), self.dtype, self.device.clone())
    }

    /// Ends the loading of this component. Returns the bytes taken.
    ///
    /// # Errors
    /// [`CheckpointError::Weights`] naming every missing, misshapen and unexpected tensor.
    pub fn finish(&self) -> Result<usize, CheckpointError> {
        let account = self.account();
        let mut faults = account.faults.clone();
        if let Some(files) = &self.store.files {
            faults.extend(
                files
                    .names()
                    .filter(|name| !account.requested.contains_key(*name))
                    .filter(|name| !account.ignored.contains(*name))
                    .map(|name| format!("{name} is unexpected")),
            );
        }
        faults.extend(self.loras.iter().flat_map(|lora| lora.unmatched(account.requested.keys())));
        if faults.is_empty() {
            return Ok(account.bytes);
        }
        faults.sort();
        faults.dedup();
        if faults.len() > LISTED_FAULTS {
            let more = faults.len() - LISTED_FAULTS;
            faults.truncate(LISTED_FAULTS);
            faults.push(format!("and {more} more"));
        }
        Err(CheckpointError::Weights { component: self.store.component.clone(), faults })
    }

    /// Every name asked for so far, with the shape.
    #[must_use]
    pub fn requested(&self) -> BTreeMap<String, Vec<usize>> {
        self.account().requested.clone()
    }

    /// Zeros of `shape` that take no memory: one element, seen everywhere.
    fn placeholder(&self, shape: Shape) -> candle_core::Result<Tensor> {
        Tensor::zeros((), self.dtype, &self.device)?.broadcast_as(shape)
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Returns whether it is the first time.
    fn request(&self, name: &str, shape: &Shape) -> bool {
        self.account().requested.insert(name.to_owned(), shape.dims().to_vec()).is_none()
    }

    fn note(&self, fault: String) {
        self.account().faults.push(fault);
    }

    fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.store.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _initial: candle_nn::Init,
        dtype: DType,
        _device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.with_dtype(dtype).get(name, shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    /// Without files every name is there.
    fn contains_tensor(&self, name: &str) -> bool {
        let name = self.full_name(name);
        self.store.files.as_ref().is_none_or(|files| files.entries.contains_key(&name))
    }
}

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
    fn open(
        snapshot: &Snapshot,
        component: &str,
        stem: &str,
        canonical: fn(&str) -> String,
    ) -> Result<Self, CheckpointError> {
        let mut files = Self { buffers: Vec::new(), entries: HashMap::new() };
        for name in shard_names(snapshot, component, stem)? {
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
        let broken = |error| malformed(format!("is not a whole safetensors file: {error}"));
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

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    /// The tensor `name`, or why it cannot be taken with this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Option<Result<TensorView<'_>, String>> {
        let entry = self.entries.get(name)?;
        if entry.shape != shape {
            return Some(Err(format!("{name} has shape {:?}, expected {shape:?}", entry.shape)));
        }
        self.find_any(name)
    }

    /// The tensor `name` of whatever shape, or why it cannot be taken.
    pub(super) fn find_any(&self, name: &str) -> Option<Result<TensorView<'_>, String>> {
        let entry = self.entries.get(name)?;
        let known = [safetensors::Dtype::F32, safetensors::Dtype::BF16, safetensors::Dtype::F16];
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

/// The safetensors files of `component`, from the index or by the plain name.
fn shard_names(
    snapshot: &Snapshot,
    component: &str,
    stem: &str,
) -> Result<Vec<String>, CheckpointError> {
    let index_file = format!("{component}/{stem}.safetensors.index.json");
    if !snapshot.has(&index_file) {
        return Ok(vec![format!("{stem}.safetensors")]);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let malformed = |reason| CheckpointError::Malformed { file: index_file.clone(), reason };
    let index: Index = serde_json::from_str(&snapshot.text(&index_file)?)
        .map_err(|error| malformed(format!("is not a shard index: {error}")))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| name.contains(['/', '\\'])) {
        Some(name) => Err(malformed(format!("names '{name}', which is not in its folder"))),
        None => Ok(names),
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
    // SAFETY: a checkpoint must not be changed while the program starts: the
    // documentation says so, downloads replace files by renaming, and nothing
    // else writes there.
    let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(unreadable)?;
    Ok(Buffer::Mapped(map))
}
