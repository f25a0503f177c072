//! The files of the kernel. Documented in `admin-guide/cgroup-v2.rst`, `accounting/psi.rst` and
//! `filesystems/proc.rst` of its documentation.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    thread::available_parallelism,
    time::Instant,
};

/// The largest part of a file that is read. `memory.stat` has about 2 kB.
const LARGEST: u64 = 64 * 1024;
const MICROS: f64 = 1e6;

/// Where the numbers of this process are. None of those that do not exist.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) cpu: Option<Cpu>,
    pub(super) pressure: Option<Pressure>,
    pub(super) memory: Option<Memory>,
}

impl Sources {
    /// Looks for the files below `root`.
    pub(super) fn find(root: &Path) -> Self {
        let groups = groups(root);
        Self {
            cpu: Cpu::find(root, &groups),
            pressure: Pressure::find(root, &groups),
            memory: Memory::find(root, &groups),
        }
    }
}

/// Returns the directories of the cgroup of this process and of those around it, from the inside
/// out.
fn groups(root: &Path) -> Vec<PathBuf> {
    let mount = root.join("sys/fs/cgroup");
    let Ok(text) = read(&root.join("proc/self/cgroup")) else { return Vec::new() };
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let own = mount.join(path.trim_start_matches('/'));
    own.ancestors().take_while(|group| group.starts_with(&mount)).map(Path::to_owned).collect()
}

/// A number that only grows, and when it was read. 1 more per second is a level of 1.
#[derive(Debug)]
pub(super) struct Counter {
    total: f64,
    at: Instant,
}

impl Counter {
    /// `None` if no time has passed.
    pub(super) fn rate_since(&self, before: &Self) -> Option<f64> {
        let passed = self.at.saturating_duration_since(before.at).as_secs_f64();
        (passed > 0.0).then(|| (self.total - before.total).max(0.0) / passed)
    }
}

#[derive(Debug)]
pub(super) enum Cpu {
    /// A cgroup, and how many processors it may use.
    Group(PathBuf, f64),
    Process(PathBuf, f64),
}

impl Cpu {
    fn find(root: &Path, groups: &[PathBuf]) -> Option<Self> {
        let all = available_parallelism().map_or(1.0, |n| n.get() as f64);
        let counts = |group: &&PathBuf| read(&group.join("cpu.stat")).is_ok_and(|text| usage(&text).is_some());
        // `available_parallelism` has the limit in it, rounded down: of 1.5 processors, 1 would be
        // an upper bound.
        let allowed = read(&root.join("proc/self/status")).ok().and_then(|text| allowed(&text)).unwrap_or(all);
        let limit = |group: &PathBuf| read(&group.join("cpu.max")).ok().and_then(|text| quota(&text));
        let limited =
            groups.iter().filter(counts).find_map(|group| Some(Self::Group(group.clone(), limit(group)?.min(allowed))));
        let own = || groups.iter().find(counts).map(|group| Self::Group(group.clone(), all));
        let process = || {
            let stat = root.join("proc/self/stat");
            read(&stat).ok().and_then(|text| ticks(&text)).and(ticks_per_second()).map(|_| Self::Process(stat, all))
        };
        limited.or_else(own).or_else(process)
    }

    pub(super) fn used(&self, at: Instant) -> io::Result<Counter> {
        let (seconds, processors) = match self {
            Self::Group(group, processors) => {
                (usage(&read(&group.join("cpu.stat"))?).map(|micros| micros / MICROS), processors)
            }
            Self::Process(stat, processors) => {
                let ticks = ticks(&read(stat)?);
                (ticks.zip(ticks_per_second()).map(|(ticks, second)| ticks / second), processors)
            }
        };
        Ok(Counter { total: seconds.ok_or(io::ErrorKind::InvalidData)? / processors, at })
    }
}

#[derive(Debug)]
pub(super) struct Pressure(PathBuf);

impl Pressure {
    fn find(root: &Path, groups: &[PathBuf]) -> Option<Self> {
        let files = groups.iter().map(|group| group.join("cpu.pressure"));
        let mut files = files.chain([root.join("proc/pressure/cpu")]);
        files.find(|file| read(file).is_ok_and(|text| stalled(&text).is_some())).map(Self)
    }

    pub(super) fn stalled(&self, at: Instant) -> io::Result<Counter> {
        let micros = stalled(&read(&self.0)?).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Counter { total: micros / MICROS, at })
    }
}

#[derive(Debug)]
pub(super) enum Memory {
    Group(PathBuf),
    Machine(PathBuf),
}

impl Memory {
    fn find(root: &Path, groups: &[PathBuf]) -> Option<Self> {
        let group = groups.iter().map(|group| Self::Group(group.clone()));
        group.chain([Self::Machine(root.join("proc/meminfo"))]).find(|memory| memory.used().is_ok())
    }

    pub(super) fn used(&self) -> io::Result<f64> {
        let share = match self {
            Self::Group(group) => {
                let number = |file: &str| read(&group.join(file)).map(|text| text.trim().parse::<f64>().ok());
                let (current, max) = (number("memory.current")?, number("memory.max")?);
                // Page cache that was not used lately is taken back before memory runs out.
                let stat = read(&group.join("memory.stat")).unwrap_or_default();
                let cache = value(&stat, "inactive_file").unwrap_or(0.0);
                current.zip(max).map(|(current, max)| (current - cache) / max)
            }
            Self::Machine(file) => {
                let text = read(file)?;
                let share = value(&text, "MemAvailable:").zip(value(&text, "MemTotal:"));
                share.map(|(available, total)| 1.0 - available / total)
            }
        };
        share.filter(|share| share.is_finite()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns the number behind a name at the beginning of a line.
fn value(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '\t']));
    line?.split_ascii_whitespace().next()?.parse().ok()
}

/// Reads `cpu.stat`: microseconds.
fn usage(text: &str) -> Option<f64> {
    value(text, "usage_usec")
}

/// Reads `cpu.max`: how many processors may be used; `None` without a limit.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// Reads `/proc/self/status`: on how many processors the process may run.
fn allowed(text: &str) -> Option<f64> {
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().split(',').try_fold(0.0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + f64::from(last.checked_sub(first)?) + 1.0)
    })
}

/// Reads a file of pressure stall information: microseconds in which some task waited.
fn stalled(text: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split(' ').find_map(|part| part.strip_prefix("total="))?.parse().ok()
}

/// Reads `/proc/self/stat`: ticks in user and in kernel mode, which are the fields 14 and 15. The
/// second is the name of the program in parentheses, which may contain anything.
fn ticks(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11).map(str::parse::<f64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

#[cfg(target_os = "linux")]
fn ticks_per_second() -> Option<f64> {
    Some(rustix::param::clock_ticks_per_second() as f64).filter(|ticks| *ticks > 0.0)
}

#[cfg(not(target_os = "linux"))]
fn ticks_per_second() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_files_are_read_as_the_kernel_writes_them() {
        assert_eq!(usage("usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n"), Some(1234.0));
        assert_eq!((quota("150000 100000\n"), quota("max 100000\n")), (Some(1.5), None));
        let psi =
            "some avg10=9.42 avg60=7.14 avg300=60.32 total=301211863\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(allowed("Cpus_allowed:\t5\nCpus_allowed_list:\t0,2-3,8-15\n"), Some(11.0));
        assert_eq!([allowed(""), allowed("Cpus_allowed_list:\t\n"), allowed("Cpus_allowed_list:\t3-1\n")], [None; 3]);
        assert_eq!(stalled(psi), Some(301_211_863.0));
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1 1\n";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(value("MemTotal:       16 kB\nMemAvailable:    4 kB\n", "MemAvailable:"), Some(4.0));
        assert_eq!(value("inactive_file_x 3\ninactive_file 4\n", "inactive_file"), Some(4.0));
    }

    proptest! {
        /// Whatever is in the files of a container, reading them is no panic.
        #[test]
        fn any_text_is_read_without_a_panic(text in "(usage_usec|some |total=|max|Cpus_allowed_list:|,|\\(|\\)|[0-9a-zA-Z .:\\n=-]){0,40}") {
            let _ = (usage(&text), quota(&text), stalled(&text), ticks(&text), value(&text, "max"), allowed(&text));
        }
    }
}
