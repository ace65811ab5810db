//! What is taken of the files without a copy of it, and what they say of themselves.

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};

use super::reading::stored_dtype;
use super::{MatrixFormat, TensorFiles, Weights};
use crate::checkpoint::LowRank;
use crate::checkpoint::device_matrix::{self, DeviceMatrix};
use crate::checkpoint::mapped::MappedMatrix;
use crate::checkpoint::tensor_files::Stored;
use crate::interruption;

impl Weights {
    /// The matrix `name` where its file is mapped, if it can be used there: on a CPU, as it
    /// is stored, and unless a LoRA is merged into it (into what is quantized none is, see
    /// [`Weights::low_rank`]). What cannot is to be taken with
    /// [`Weights::get`], which tells what is wrong, too.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_mapped(
        &self,
        name: &str,
        shape: (usize, usize),
    ) -> candle_core::Result<Option<MappedMatrix>> {
        let full_name = self.full_name(name);
        let Some(matrix) = self.find_mapped(&full_name, shape) else { return Ok(None) };
        interruption::check()?;
        let dims = Shape::from(shape);
        self.request(&full_name, &dims);
        // Counted as if they were a copy: the system should have room to keep them.
        let bytes = matrix.byte_count();
        if self.checked.is_some() {
            self.check_loras(&full_name, &dims)?;
            self.count_checked(full_name, bytes);
            return Ok(Some(matrix));
        }
        self.count_taken(full_name, bytes);
        Ok(Some(matrix))
    }

    /// What the LoRAs of [`Weights::merging`] add to products with the matrix `name`, where
    /// they are not merged into it: into one that is used as it is quantized.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn low_rank(
        &self,
        name: &str,
        shape: (usize, usize),
    ) -> candle_core::Result<Arc<[LowRank]>> {
        let full_name = self.full_name(name);
        let mut made = Vec::new();
        for lora in self.loras.iter() {
            match lora.low_rank(&full_name, shape, self.dtype)? {
                Some(Ok(low_rank)) => made.push(low_rank),
                Some(Err(fault)) => self.note(fault)?,
                None => {}
            }
        }
        Ok(made.into())
    }

    /// The matrix `name` as it is quantized, on a GPU, if it can be kept so there.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_quantized(
        &self,
        name: &str,
        shape: (usize, usize),
    ) -> candle_core::Result<Option<DeviceMatrix>> {
        if self.device.is_cpu() || self.matrices != MatrixFormat::AsStored {
            return Ok(None);
        }
        let full_name = self.full_name(name);
        let dims = [shape.0, shape.1];
        let files = self.store.source.files();
        let parts = files.and_then(|files| files.quantized_parts(&full_name, &dims));
        let Some(matrix) = parts.and_then(|parts| device_matrix::of(&self.store, parts, shape))
        else {
            return Ok(None);
        };
        interruption::check()?;
        self.request(&full_name, &Shape::from(shape));
        self.count_taken(full_name, matrix.byte_count());
        matrix.on(&self.device).map(Some)
    }

    fn find_mapped(&self, full_name: &str, shape: (usize, usize)) -> Option<MappedMatrix> {
        if !self.device.is_cpu() {
            return None;
        }
        let files = self.store.source.files()?;
        let dims = [shape.0, shape.1];
        if let Some(parts) = files.quantized_parts(full_name, &dims) {
            let stays = self.matrices == MatrixFormat::AsStored
                && (!self.is_for_gpu || device_matrix::can_be_of(parts));
            return stays.then(|| MappedMatrix::quantized(Arc::clone(&self.store), parts, shape));
        }
        let place = files.place_of(full_name, &dims)?;
        let is_same = stored_dtype(self.dtype) == Some(place.dtype);
        let is_exact = is_same || (self.dtype == DType::F32 && self.is_for_one_use);
        if !is_exact || !self.loras.is_empty() {
            return None;
        }
        MappedMatrix::new(Arc::clone(&self.store), place, shape)
    }

    /// Whether rows of the matrix `name` are best read when they are needed, wherever the
    /// others are: on a CPU, where files are mapped, and of what is quantized. It is accounted
    /// for then, and takes no memory.
    #[must_use]
    pub fn has_rows_at_hand(&self, name: &str, shape: (usize, usize)) -> bool {
        let full_name = self.full_name(name);
        let dims = [shape.0, shape.1];
        let files = self.store.source.files().filter(|_| self.loras.is_empty());
        let is_at_hand = files.is_some_and(|files| match self.is_for_gpu {
            true => files.quantized_parts(&full_name, &dims).is_some(),
            false => matches!(files.find(&full_name, &dims), Some(Ok(_))),
        });
        if is_at_hand {
            self.request(&full_name, &Shape::from(shape));
        }
        is_at_hand
    }

    /// Rows of the matrix `name` of `shape`, as [`Weights::get`] would hand them out; only
    /// these are read.
    ///
    /// # Errors
    /// As [`Weights::get`], or if there are not so many rows.
    pub fn get_rows(
        &self,
        name: &str,
        shape: (usize, usize),
        rows: &[u32],
    ) -> candle_core::Result<Tensor> {
        let (count, width) = shape;
        if let Some(row) = rows.iter().find(|row| **row as usize >= count) {
            candle_core::bail!("row {row} of {count}");
        }
        let full_name = self.full_name(name);
        let bytes = rows.len() * width * self.dtype.size_in_bytes();
        let Some(files) = self.store.source.files() else {
            return self.made_up(&full_name, (rows.len(), width).into(), bytes);
        };
        let found = files.find(&full_name, &[count, width]);
        let (Some(Ok(stored)), None, []) = (found, &self.checked, &*self.loras) else {
            let indexes = Tensor::new(rows, &self.device)?;
            return self.get(name, shape)?.index_select(&indexes, 0);
        };
        interruption::check()?;
        let tensor = self.in_turn().read_rows(&full_name, &stored, rows)?;
        (self.on_read.0)(bytes);
        Ok(tensor)
    }

    /// The rows `rows` of the matrix `stored`.
    fn read_rows(
        &self,
        full_name: &str,
        stored: &Stored,
        rows: &[u32],
    ) -> candle_core::Result<Tensor> {
        let (_, width) = stored.rows_and_width();
        let mut made = vec![0.0; rows.len() * width];
        for (row, made) in rows.iter().zip(made.chunks_exact_mut(width.max(1))) {
            let row = *row as usize;
            stored.decode(row..row + 1, made);
        }
        let wide = Tensor::from_vec(made, (rows.len(), width), &Device::Cpu)?;
        self.handed_out(full_name, wide)
    }

    /// The names of the quantized formats that the files have tensors in.
    #[must_use]
    pub fn quantized_formats(&self) -> Vec<String> {
        self.store.source.files().map(TensorFiles::quantized_formats).unwrap_or_default()
    }

    /// How many places `0`, `1`, … the files have below `place`, without a gap: a stray
    /// tensor is not one more.
    #[must_use]
    pub fn stored_count(&self, place: &str) -> usize {
        let place = format!("{}.", self.full_name(place));
        let names = self.store.source.files().into_iter().flat_map(TensorFiles::names);
        let numbers = names.filter_map(|name| {
            let number = name.strip_prefix(&place)?.split('.').next()?;
            number.parse::<usize>().ok()
        });
        let found: HashSet<usize> = numbers.collect();
        (0..).take_while(|number| found.contains(number)).count()
    }

    /// Whether there are tensors below this place: always, where there are no files.
    #[must_use]
    pub fn has_any(&self) -> bool {
        let place = format!("{}.", self.prefix);
        let files = self.store.source.files();
        files.is_none_or(|files| files.names().any(|name| name.starts_with(&place)))
    }

    /// The shape that the files have of the tensor `name`.
    #[must_use]
    pub fn stored_shape(&self, name: &str) -> Option<&[usize]> {
        self.store.source.files()?.shape(&self.full_name(name))
    }
}
