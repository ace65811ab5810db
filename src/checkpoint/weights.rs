//! The tensors of one component.
//!
//! A component walks the names of its checkpoint with [`Weights::at`] and takes
//! each tensor with the shape that it needs. What does not fit is noted, not
//! thrown: [`Weights::finish`] names everything missing, misshapen or left over
//! in one message.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;

use super::mapped::Place;
use super::storage::Part;
use super::tensor_files::TensorFiles;
#[cfg(feature = "cuda")]
use super::upload;
use super::{AdapterSlot, Adapters, CheckpointError, Lora, Snapshot};
use crate::interruption;

mod backend;
mod in_files;
mod reading;

/// How many faults a message lists before it only counts.
const LISTED_FAULTS: usize = 20;
/// How many faults are gathered before loading ends.
const MOST_FAULTS: usize = 1000;
/// Elements of all kernels that are not there, before loading ends: what loads kernels
/// copies the zeros that stand for them.
const MOST_KERNEL_ELEMENTS: usize = 1 << 27;
/// Elements of any one tensor that is not there, likewise.
const LARGEST_STAND_IN: usize = 1 << 48;

/// How layers that can do with fewer digits keep their matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixFormat {
    /// As they are stored, where that is in fewer bits; else in the format that they compute
    /// in.
    AsStored,
    /// In the format that they compute in.
    AsComputed,
    /// In 8-bit floats with a scale for each output; inputs are rounded to that, too.
    Fp8,
    /// In 8-bit floats with a scale for each output; inputs stay as they are.
    Fp8Weights,
    /// In 8-bit integers with a scale for 32 of them, on a CPU; inputs are rounded to that,
    /// too, where the processor multiplies such integers.
    Q8_0,
}

/// A place in a component's tree of tensors. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    store: Arc<Store>,
    loras: Arc<[Lora]>,
    /// What may change layers that are loaded from here, while they compute.
    adapters: Option<Arc<Adapters>>,
    prefix: String,
    dtype: DType,
    matrices: MatrixFormat,
    /// Whether layers that lose most by that keep the format that they compute in.
    spares_sensitive: bool,
    device: Device,
    /// Whether a GPU uploads tensors beside its work.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "there is no card"))]
    prefetching: bool,
    /// If tensors are only held against what is asked for, not read: which.
    checked: Option<Arc<Mutex<CheckedTensors>>>,
    /// Whether what is checked is to be on a GPU.
    is_for_gpu: bool,
    /// Whether matrices are widened while they are multiplied, rather than copied in the wider
    /// dtype that is computed in.
    is_for_one_use: bool,
    /// Is told the bytes of each tensor that is read.
    on_read: OnRead,
}

/// What is called when a tensor has been read.
#[derive(Clone)]
struct OnRead(Arc<dyn Fn(usize) + Send + Sync>);

/// Tensors that were checked and not read.
#[derive(Debug, Clone, Default)]
pub struct CheckedTensors {
    /// Their full names, and their bytes in the formats that they are kept in.
    bytes: BTreeMap<String, usize>,
}

impl CheckedTensors {
    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.values().sum()
    }

    /// Bytes of those whose full names start with `prefix`.
    #[must_use]
    pub fn bytes_at(&self, prefix: &str) -> usize {
        let from = self.bytes.range(prefix.to_owned()..);
        from.take_while(|(name, _)| name.starts_with(prefix)).map(|(_, bytes)| bytes).sum()
    }
}

pub(super) struct Store {
    /// The component's folder, for messages.
    component: String,
    source: Source,
    account: Mutex<Account>,
}

/// Where tensors come from.
enum Source {
    Files(TensorFiles),
    /// Zeros of any name and shape, which take no memory.
    Placeholders,
    /// Random elements of any name and shape.
    Random,
}

impl Store {
    /// What lies at `place` in its files.
    pub(super) fn bytes_at(&self, place: &Place) -> Option<&[u8]> {
        self.source.files()?.bytes_at(place)
    }

    /// The bytes of `part` of its files.
    pub(super) fn bytes_of(&self, part: &Part) -> &[u8] {
        self.source.files().map(|files| files.bytes_of(part)).unwrap_or_default()
    }
}

impl Source {
    fn files(&self) -> Option<&TensorFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::Placeholders | Self::Random => None,
        }
    }
}

/// What has been asked of a [`Store`].
#[derive(Default)]
struct Account {
    requested: BTreeMap<String, Vec<usize>>,
    ignored: HashSet<String>,
    faults: Vec<String>,
    taken: HashSet<String>,
    bytes_taken: usize,
    /// Whether all faults have been reported; later ones are errors at once.
    is_closed: bool,
    /// Elements of the kernels that are not there as they were asked for.
    absent_kernel_elements: usize,
    /// Whether loading ended at a fault, before everything was asked for.
    is_cut_short: bool,
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
        Ok(Self::from_store(component, Source::Files(files), dtype, device))
    }

    /// Weights without files: hands out a placeholder of any shape, without
    /// allocating it, and records what was asked for. With it a test learns
    /// which tensors a configuration needs.
    #[must_use]
    pub fn recording(component: &str, dtype: DType) -> Self {
        Self::from_store(component, Source::Placeholders, dtype, &Device::Cpu)
    }

    /// Weights without files, to measure speed with: hands out any tensor, filled
    /// on the device as networks are before training. Matrices and kernels are
    /// normal with deviation 0.02, biases 0, all other vectors 1.
    #[must_use]
    pub fn random(component: &str, (dtype, device): (DType, &Device)) -> Self {
        Self::from_store(component, Source::Random, dtype, device)
    }

    fn from_store(component: &str, source: Source, dtype: DType, device: &Device) -> Self {
        let store = Store { component: component.to_owned(), source, account: Mutex::default() };
        Self {
            store: Arc::new(store),
            loras: Arc::new([]),
            adapters: None,
            prefix: String::new(),
            dtype,
            matrices: MatrixFormat::AsComputed,
            spares_sensitive: false,
            device: device.clone(),
            prefetching: false,
            checked: None,
            is_for_gpu: !device.is_cpu(),
            is_for_one_use: false,
            on_read: OnRead(Arc::new(|_bytes| {})),
        }
    }

    /// The same place, where tensors are only checked and counted, not read: a
    /// component loaded from here is made of placeholders.
    #[must_use]
    pub fn checking(&self) -> Self {
        Self { checked: Some(Arc::default()), device: Device::Cpu, ..self.clone() }
    }

    /// The same place, for layers that are dropped after each use.
    #[must_use]
    pub fn for_one_use(&self) -> Self {
        Self { is_for_one_use: true, ..self.clone() }
    }

    /// The same place, whose tensors are counted as a GPU would keep them.
    #[must_use]
    pub fn for_gpu(self) -> Self {
        Self { is_for_gpu: true, ..self }
    }

    /// What was checked here since [`Weights::checking`].
    #[must_use]
    pub fn checked(&self) -> CheckedTensors {
        self.checked.as_ref().map_or_else(CheckedTensors::default, |checked| lock(checked).clone())
    }

    /// Asks the system to have `tensors` read from the disk by the time they are
    /// taken. Returns at once; without effect if they are not in mapped files.
    pub fn read_ahead(&self, tensors: &CheckedTensors) {
        if let Some(files) = self.store.source.files() {
            tensors.bytes.keys().for_each(|name| files.read_ahead(name));
        }
    }

    /// The same, with what `loras` change added to each tensor when it is taken.
    /// [`Weights::finish`] reports those of their keys that match no tensor.
    #[must_use]
    pub fn merging(self, loras: Vec<Lora>) -> Self {
        Self { loras: loras.into(), ..self }
    }

    /// The same place, from which layers are loaded that `adapters` can change.
    #[must_use]
    pub fn adaptable(&self, adapters: &Arc<Adapters>) -> Self {
        Self { adapters: Some(adapters.clone()), ..self.clone() }
    }

    /// What can change the layer at this place, whose matrix is (`outputs`, `inputs`).
    #[must_use]
    pub fn adapter_slot(&self, outputs: usize, inputs: usize) -> Option<AdapterSlot> {
        let adapters = self.adapters.as_ref()?;
        Some(adapters.slot(&self.prefix, [outputs, inputs]))
    }

    /// The same, calling `on_read` with the bytes of each tensor that is read.
    #[must_use]
    pub fn reporting(self, on_read: impl Fn(usize) + Send + Sync + 'static) -> Self {
        Self { on_read: OnRead(Arc::new(on_read)), ..self }
    }

    /// The place `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        Self { prefix: self.full_name(&name.to_string()), ..self.clone() }
    }

    /// What `load` makes of the places `0`, `1`, … below this one, `count` of them.
    /// On a CPU they are loaded side by side; a GPU has one stream for all.
    ///
    /// # Errors
    /// The first error of `load`.
    pub fn load_each<T: Send>(
        &self,
        count: usize,
        load: impl Fn(&Self, usize) -> candle_core::Result<T> + Sync,
    ) -> candle_core::Result<Vec<T>> {
        let part = |index: usize| load(&self.at(index), index);
        if self.device.is_cpu() {
            return loaded_side_by_side(count, part);
        }
        (0..count).map(part).collect()
    }

    /// The same place, handing out tensors of another dtype.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The same place, telling layers to keep their matrices in another format, if
    /// they can.
    #[must_use]
    pub fn with_matrices(&self, matrices: MatrixFormat) -> Self {
        Self { matrices, ..self.clone() }
    }

    /// The same place, whose [`Weights::sensitive`] places keep the format that they
    /// compute in, if that is `spared`.
    #[must_use]
    pub fn sparing_sensitive(&self, spared: bool) -> Self {
        Self { spares_sensitive: spared, ..self.clone() }
    }

    /// The same place, of layers that lose most by fewer digits.
    #[must_use]
    pub fn sensitive(&self) -> Self {
        if self.spares_sensitive {
            self.with_matrices(MatrixFormat::AsComputed)
        } else {
            self.clone()
        }
    }

    /// The format that layers shall keep their matrices in, if they can.
    #[must_use]
    pub fn matrices(&self) -> MatrixFormat {
        self.matrices
    }

    /// The same place, from which a GPU uploads tensors beside what it computes:
    /// they must be waited for with [`Weights::await_uploads`].
    #[must_use]
    pub fn prefetching(&self) -> Self {
        Self { prefetching: true, ..self.clone() }
    }

    /// The same place, from which tensors come that can be computed with at once.
    #[must_use]
    pub fn in_turn(&self) -> Self {
        Self { prefetching: false, ..self.clone() }
    }

    /// Has the device compute nothing more until all tensors taken so far are there.
    /// Returns at once.
    ///
    /// # Errors
    /// A candle error of the driver.
    pub fn await_uploads(&self) -> candle_core::Result<()> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), true) = (&self.device, self.prefetching) {
            return upload::await_uploads(device);
        }
        Ok(())
    }

    /// Has the device finish what it was told to compute before tensors that were
    /// taken here are freed. Returns at once.
    ///
    /// # Errors
    /// A candle error of the driver.
    pub fn release(&self) -> candle_core::Result<()> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), true) = (&self.device, self.prefetching) {
            return upload::release(device);
        }
        Ok(())
    }

    /// Whether tensors handed out here are placeholders, not to be computed with.
    #[must_use]
    pub fn is_placeholder(&self) -> bool {
        self.checked.is_some() || matches!(self.store.source, Source::Placeholders)
    }

    /// Dtype of the tensors handed out.
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
        let shape = shape.into();
        let bytes = elements_in(&shape).saturating_mul(self.dtype.size_in_bytes());
        self.get_kept_in(name, shape, bytes)
    }

    /// As [`Weights::get`], for who keeps it in `bytes` bytes.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_kept_in(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        bytes: usize,
    ) -> candle_core::Result<Tensor> {
        let name = self.full_name(name);
        let shape = shape.into();
        self.request(&name, &shape);
        let Some(files) = self.store.source.files() else {
            return self.made_up(&name, shape, bytes);
        };
        match files.find(&name, shape.dims()) {
            Some(Ok(_)) if self.checked.is_some() => {
                self.check_loras(&name, &shape)?;
                self.count_checked(name, bytes);
                self.placeholder(shape)
            }
            Some(Ok(stored)) => {
                interruption::check()?;
                let tensor = self.read(&name, &stored)?;
                self.count_taken(name, bytes);
                Ok(tensor)
            }
            Some(Err(fault)) => self.stand_in(shape, fault),
            None => self.stand_in(shape, format!("{name} is missing")),
        }
    }

    /// A placeholder for a tensor that is not there as it was asked for; `fault` says why.
    fn stand_in(&self, shape: Shape, fault: String) -> candle_core::Result<Tensor> {
        self.note(fault)?;
        let numbers = elements_in(&shape);
        let mut account = self.account();
        if shape.rank() > 2 {
            account.absent_kernel_elements = account.absent_kernel_elements.saturating_add(numbers);
        }
        if numbers > LARGEST_STAND_IN || account.absent_kernel_elements > MOST_KERNEL_ELEMENTS {
            account.is_cut_short = true;
            candle_core::bail!("loading ended at what is not there");
        }
        drop(account);
        self.placeholder(shape)
    }

    fn count_taken(&self, name: String, bytes: usize) {
        (self.on_read.0)(bytes);
        let mut account = self.account();
        if account.taken.insert(name) {
            account.bytes_taken += bytes;
        }
    }

    fn count_checked(&self, name: String, bytes: usize) {
        if let Some(checked) = &self.checked {
            lock(checked).bytes.insert(name, bytes);
        }
    }

    /// Accounts for the tensor `name` of `shape` that the component does not
    /// use. It need not be there.
    pub fn skip(&self, name: &str, shape: impl Into<Shape>) {
        let name = self.full_name(name);
        let shape = shape.into();
        self.request(&name, &shape);
        let found = self.store.source.files().and_then(|files| files.find(&name, shape.dims()));
        if let Some(Err(fault)) = found {
            self.account().faults.push(fault);
        }
    }

    /// Accounts for the tensor `name`, whatever it is, which carries nothing:
    /// such as a buffer that some versions of a library have saved.
    pub fn ignore(&self, name: &str) {
        self.account().ignored.insert(self.full_name(name));
    }

    /// Ends the loading of this component. Returns the bytes taken.
    ///
    /// # Errors
    /// [`CheckpointError::Weights`] naming every missing, misshapen and unexpected tensor.
    pub fn finish(&self) -> Result<usize, CheckpointError> {
        let mut account = self.account();
        account.is_closed = true;
        let mut faults = account.faults.clone();
        if let Some(files) = self.store.source.files().filter(|_| !account.is_cut_short) {
            faults.extend(
                files
                    .names()
                    .filter(|name| !account.requested.contains_key(*name))
                    .filter(|name| !account.ignored.contains(*name))
                    .map(|name| format!("{name} is unexpected")),
            );
        }
        if !account.is_cut_short {
            let requested = || account.requested.keys();
            faults.extend(self.loras.iter().flat_map(|lora| lora.unmatched(requested())));
        }
        if faults.is_empty() {
            return Ok(account.bytes_taken);
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

    /// What `load` makes of these weights.
    ///
    /// # Errors
    /// Those faults that ended it early, if it was ended by them, else its own error.
    pub fn load<T, E>(&self, load: impl FnOnce(&Self) -> candle_core::Result<T>) -> Result<T, E>
    where
        E: From<CheckpointError> + From<candle_core::Error>,
    {
        let loaded = load(self);
        let is_cut_short = self.account().is_cut_short;
        if loaded.is_err() && is_cut_short {
            self.finish()?;
        }
        Ok(loaded?)
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

    fn request(&self, name: &str, shape: &Shape) {
        self.account().requested.insert(name.to_owned(), shape.dims().to_vec());
    }

    /// Keeps `fault` for [`Weights::finish`], or fails if that has been.
    fn note(&self, fault: String) -> candle_core::Result<()> {
        let mut account = self.account();
        if account.is_closed {
            candle_core::bail!("{}: {fault}", self.store.component);
        }
        account.faults.push(fault);
        if account.faults.len() < MOST_FAULTS {
            return Ok(());
        }
        account.is_cut_short = true;
        candle_core::bail!("loading ended at {MOST_FAULTS} faults")
    }

    fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        lock(&self.store.account)
    }
}

/// How many elements a tensor of `shape` has; the largest number if they are more.
fn elements_in(shape: &Shape) -> usize {
    shape.dims().iter().fold(1, |product: usize, side| product.saturating_mul(*side))
}

/// What `load` makes of the elements below `count`, on all processors.
fn loaded_side_by_side<T: Send>(
    count: usize,
    load: impl Fn(usize) -> candle_core::Result<T> + Sync,
) -> candle_core::Result<Vec<T>> {
    interruption::shared(|watch| {
        (0..count).into_par_iter().map(|index| watch.over(|| load(index))).collect()
    })
}

/// What a panic left in the mutex is as good as before: single values are set.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
