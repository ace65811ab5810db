//! The file that is written: under another name until it is complete.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::ConvertError;

/// A file in the making. What is not published is removed.
#[derive(Debug)]
pub(super) struct OutputFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    replaces: bool,
    bytes: u64,
    is_published: bool,
}

impl OutputFile {
    /// Begins the file `path`, which will have so many `bytes`.
    ///
    /// # Errors
    /// [`ConvertError::Exists`] if there is one and it may not be replaced,
    /// [`ConvertError::Busy`] if another run is at it, or [`ConvertError::Write`].
    pub(super) fn create(path: &Path, replaces: bool, bytes: u64) -> Result<Self, ConvertError> {
        refuse_existing(path, replaces)?;
        if path.is_dir() {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(ConvertError::Write { path: path.to_owned(), bytes, source });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let cannot = |source| ConvertError::Write { path: part.clone(), bytes, source };
        // Not truncated: it may be another run's.
        let file = File::options().write(true).create(true).truncate(false).open(&part);
        let file = file.map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ConvertError::Busy { path: part }),
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        let path = path.to_owned();
        let output = Self { path, part, file, replaces, bytes, is_published: false };
        output.file.set_len(0).map_err(|source| output.cannot(source))?;
        Ok(output)
    }

    /// What is written to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// That it cannot be written.
    pub(super) fn cannot(&self, source: io::Error) -> ConvertError {
        ConvertError::Write { path: self.path.clone(), bytes: self.bytes, source }
    }

    /// Gives it its name, once it is on the disk.
    ///
    /// # Errors
    /// As [`OutputFile::create`].
    pub(super) fn publish(mut self) -> Result<(), ConvertError> {
        self.file.sync_all().map_err(|source| self.cannot(source))?;
        // Somebody may have made one meanwhile.
        refuse_existing(&self.path, self.replaces)?;
        fs::rename(&self.part, &self.path).map_err(|source| self.cannot(source))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if !self.is_published {
            _ = fs::remove_file(&self.part);
        }
    }
}

/// Refuses to replace a file that may not be.
pub(super) fn refuse_existing(path: &Path, replaces: bool) -> Result<(), ConvertError> {
    let is_there = path.symlink_metadata().is_ok();
    let refused = is_there && !replaces;
    if refused { Err(ConvertError::Exists { path: path.to_owned() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn nothing_stands_under_the_name_before_the_end_and_nothing_is_left_of_what_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");

        let output = OutputFile::create(&path, false, 1).unwrap();
        assert_eq!(names(folder.path()), ["a.gguf.part"]);
        drop(output);
        assert!(names(folder.path()).is_empty());

        OutputFile::create(&path, false, 1).unwrap().publish().unwrap();
        assert_eq!(names(folder.path()), ["a.gguf"]);
    }

    #[test]
    fn a_file_is_replaced_if_that_is_asked_for_even_if_it_comes_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let output = OutputFile::create(&path, false, 1).unwrap();
        fs::write(&path, "other").unwrap();

        assert!(matches!(output.publish(), Err(ConvertError::Exists { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "other");
        let early = OutputFile::create(&path, false, 1);
        assert!(matches!(early, Err(ConvertError::Exists { .. })));
        OutputFile::create(&path, true, 1).unwrap().publish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn two_runs_do_not_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let first = OutputFile::create(&path, false, 1).unwrap();

        let second = OutputFile::create(&path, false, 1);

        assert!(matches!(second, Err(ConvertError::Busy { .. })));
        first.publish().unwrap();
        assert_eq!(names(folder.path()), ["a.gguf"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_with_the_size() {
        let path = Path::new("/there is no such folder/a.gguf");

        let fault = OutputFile::create(path, false, 3 << 30).unwrap_err().to_string();

        assert!(fault.contains("/there is no such folder/a.gguf"), "{fault}");
        assert!(fault.contains("3.00 GiB"), "{fault}");
    }
}
