//! Writes a safetensors file as it goes: the header, which says where each tensor will lie,
//! then the tensors in any order, piece by piece.

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: usize,
}

/// A file in the making.
#[derive(Debug)]
pub(super) struct SafetensorsWriter<W> {
    out: W,
    /// Where the next byte would go.
    position: u64,
    /// Bytes of each tensor that are not written yet.
    left: BTreeMap<String, Range<u64>>,
}

impl<W: Write + Seek> SafetensorsWriter<W> {
    /// Writes the header. Tensors of wide elements lie before those of narrow ones, so that
    /// each lies where its elements may, as the safetensors package has it.
    pub(super) fn start(
        mut out: W,
        metadata: &BTreeMap<&str, String>,
        mut entries: Vec<Entry>,
    ) -> io::Result<Self> {
        entries.sort_by(|one, other| {
            (other.dtype.bitsize(), &one.name).cmp(&(one.dtype.bitsize(), &other.name))
        });
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
        let mut offset = 0_u64;
        let mut ranges = Vec::new();
        for entry in entries {
            let end = offset + entry.bytes as u64;
            header.insert(entry.name.clone(), said_of(&entry, offset, end));
            ranges.push((entry.name, offset..end));
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let start = 8 + header.len() as u64;
        let moved =
            |(name, range): (String, Range<u64>)| (name, start + range.start..start + range.end);
        Ok(Self { out, position: start, left: ranges.into_iter().map(moved).collect() })
    }

    /// Writes `bytes`, which are the next of the tensor `name`.
    pub(super) fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let left = self.left.get_mut(name);
        let left = left.filter(|left| bytes.len() as u64 <= left.end - left.start);
        let left = left.ok_or_else(|| io::Error::other(format!("there is no room for {name}")))?;
        if left.start != self.position {
            self.out.seek(SeekFrom::Start(left.start))?;
        }
        self.out.write_all(bytes)?;
        left.start += bytes.len() as u64;
        self.position = left.start;
        Ok(())
    }

    /// The end of the file, which must be complete.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if let Some((name, _)) = self.left.iter().find(|(_, left)| !left.is_empty()) {
            return Err(io::Error::other(format!("{name} is not complete")));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

fn said_of(entry: &Entry, begin: u64, end: u64) -> Value {
    // As the crate spells it: F8_E4M3.
    let dtype = json!(entry.dtype);
    json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [begin, end] })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use safetensors::SafeTensors;

    use super::*;

    fn entry(name: &str, dtype: Dtype, shape: &[usize]) -> Entry {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        Entry { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    fn started() -> SafetensorsWriter<Cursor<Vec<u8>>> {
        let entries = vec![
            entry("a", Dtype::F8_E4M3, &[3]),
            entry("b", Dtype::BF16, &[1, 2]),
            entry("a_scale", Dtype::F32, &[]),
            entry("empty", Dtype::BF16, &[0]),
        ];
        let metadata = BTreeMap::from([("format", "pt".to_owned())]);
        SafetensorsWriter::start(Cursor::new(Vec::new()), &metadata, entries).unwrap()
    }

    #[test]
    fn what_is_written_piece_by_piece_in_any_order_is_read_again() {
        let mut writer = started();
        writer.append("a", &[1, 2]).unwrap();
        writer.append("a_scale", &[0, 0, 128, 63]).unwrap();
        writer.append("a", &[3]).unwrap();
        writer.append("b", &[4, 5, 6, 7]).unwrap();
        let file = writer.finish().unwrap().into_inner();

        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("a").unwrap().data(), [1, 2, 3]);
        assert_eq!(read.tensor("a").unwrap().dtype(), Dtype::F8_E4M3);
        assert_eq!(read.tensor("b").unwrap().data(), [4, 5, 6, 7]);
        assert_eq!(read.tensor("a_scale").unwrap().data(), 1.0_f32.to_le_bytes());
        assert_eq!(read.tensor("empty").unwrap().shape(), [0]);
        let (header, said) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(said.metadata().as_ref().unwrap()["format"], "pt");
    }

    #[test]
    fn a_tensor_gets_all_its_bytes_and_no_more() {
        let mut writer = started();

        assert!(writer.append("a", &[0; 4]).is_err());
        assert!(writer.append("c", &[0]).is_err());
        writer.append("a", &[0; 3]).unwrap();
        let said = writer.finish().unwrap_err().to_string();
        assert_eq!(said, "a_scale is not complete");
    }
}
