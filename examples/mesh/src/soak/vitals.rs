//! Memory and open descriptors of the processes, from Linux's `/proc`.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use crate::launch::Name;

/// Readings by service.
pub type Readings = BTreeMap<&'static str, Vitals>;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Vitals {
    /// Resident memory in MiB.
    pub memory: usize,
    /// Open descriptors.
    pub descriptors: usize,
}

/// Growth that is not a leak: caches, pools, and connections that linger. A process may have twice
/// the memory plus 64 MiB, and 100 descriptors more.
const MEMORY: usize = 64;
const DESCRIPTORS: usize = 100;

/// Reads a process. `None` if it does not run, or if this is not Linux.
pub(super) fn read(pid: u32) -> Option<Vitals> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: usize = memory.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Vitals { memory: kib / 1024, descriptors })
}

/// Returns what has grown too much.
pub(super) fn growth(name: Name, before: &Readings, after: &Readings) -> Vec<String> {
    let name = name.as_str();
    let (Some(before), Some(after)) = (before.get(name), after.get(name)) else { return Vec::new() };
    let mut grown = Vec::new();
    if after.memory > 2 * before.memory + MEMORY {
        grown.push(format!("{name}: memory grew from {} to {} MiB", before.memory, after.memory));
    }
    if after.descriptors > before.descriptors + DESCRIPTORS {
        grown.push(format!("{name}: descriptors grew from {} to {}", before.descriptors, after.descriptors));
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_the_limits_is_said() {
        let readings = |memory, descriptors| Readings::from([("order", Vitals { memory, descriptors })]);
        let grown = |after| growth(Name::Order, &readings(50, 40), &after);
        assert!(grown(readings(164, 140)).is_empty());
        assert_eq!(grown(readings(165, 140)), ["order: memory grew from 50 to 165 MiB"]);
        assert_eq!(grown(readings(164, 141)), ["order: descriptors grew from 40 to 141"]);
        assert!(growth(Name::Payment, &readings(1, 1), &readings(1, 1)).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_memory_and_descriptors() {
        let vitals = read(std::process::id()).unwrap();
        assert!(vitals.memory > 0 && vitals.descriptors > 2, "{vitals:?}");
        assert_eq!(read(u32::MAX), None);
    }
}
