//! What the system says of this process.

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// This process.
pub(super) struct Process {
    /// Since 1970.
    pub(super) started_s: u64,
    pub(super) resident_bytes: u64,
    /// Descriptors; not every system tells.
    pub(super) open_files: Option<usize>,
    pub(super) max_files: Option<usize>,
}

impl Process {
    pub(super) fn own() -> Option<Self> {
        let own = sysinfo::get_current_pid().ok()?;
        let mut system = System::new().ok()?;
        let what = ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
        let process = system.process(own)?;
        Some(Self {
            started_s: process.start_time(),
            resident_bytes: process.memory(),
            open_files: process.open_files(),
            max_files: process.open_files_limit(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_knows_its_memory_and_its_files() {
        let process = Process::own().unwrap();

        assert!(process.resident_bytes > 1 << 20 && process.started_s > 1_600_000_000);
        assert!(process.open_files.unwrap() > 2 && process.max_files > process.open_files);
    }
}
