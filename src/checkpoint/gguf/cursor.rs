//! A way through the bytes of a header that cannot leave them.

use super::GgufError;

/// What is left of a file, and how far it has been read.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    /// How many bytes have been read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// How long the whole file is.
    pub(super) fn file_length(&self) -> usize {
        self.file.len()
    }

    /// The next `length` bytes, which are (part of) `what`.
    pub(super) fn bytes(&mut self, length: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or(GgufError::Truncated { what, length: self.file.len() })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let rest = self.file.get(self.at..).and_then(<[u8]>::first_chunk);
        let array = rest.ok_or(GgufError::Truncated { what, length: self.file.len() })?;
        self.at += N;
        Ok(*array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string of up to `most` bytes.
    pub(super) fn text(&mut self, most: u64, what: &'static str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        let at = self.at;
        if length > most {
            return Err(GgufError::TooLong { what, at, length, most });
        }
        let bytes = self.bytes(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotText { what, at })
    }
}
