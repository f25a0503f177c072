use super::{Monitor, task::AbortOnDrop};
use crate::clock::TokioClock;
use buttress_core::Clock;
use sources::{Counter, Sources};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

mod sources;

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

/// How much of the processor and of the memory is used, read once a second by one task. The task
/// ends when the last clone and the last monitor are dropped, or with its runtime; the levels are
/// then 0.
///
/// The numbers are those of the cgroup (version 2) that limits the process, so that they are right
/// in a container. Where there is none, they are those of the process or the machine. The limits of
/// cgroups of version 1 are not read.
///
/// | monitor | from a cgroup | else |
/// |---|---|---|
/// | [`cpu`](Self::cpu) | `cpu.stat`, of the limit in `cpu.max` or the processors | `/proc/self/stat`, of the processors |
/// | [`cpu_pressure`](Self::cpu_pressure) | `cpu.pressure` | `/proc/pressure/cpu` |
/// | [`memory`](Self::memory) | `memory.current` of `memory.max`, without the page cache that was not used lately | `/proc/meminfo` |
///
/// ```
/// use buttress::{LoadShed, load_shed::SystemLoad};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let system = SystemLoad::start();
/// let shed = LoadShed::builder("orders")
///     .monitor_at(0.9, system.cpu()?)
///     .monitor_at(0.9, system.memory()?)
///     .build()?;
/// # let _ = shed;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SystemLoad(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    levels: Arc<Levels>,
    has: [bool; 3],
    task: AbortOnDrop,
}

/// The bits of the last levels, in the order of [`Resource`].
type Levels = [AtomicU64; 3];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Resource {
    Cpu = 0,
    CpuPressure = 1,
    Memory = 2,
}

impl Resource {
    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuPressure => "cpu_pressure",
            Self::Memory => "memory",
        }
    }
}

/// The error of a monitor that the machine has no numbers for: no Linux, or a kernel or a container
/// without the file.
///
/// ```
/// use buttress::load_shed::SystemLoad;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// if let Err(unsupported) = SystemLoad::start().cpu_pressure() {
///     assert_eq!(unsupported.to_string(), "no numbers of `cpu_pressure` on this machine");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no numbers of `{monitor}` on this machine")]
pub struct Unsupported {
    monitor: &'static str,
}

impl SystemLoad {
    /// Starts the task on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start() -> Self {
        Self::reading(Path::new("/"))
    }

    fn reading(root: &Path) -> Self {
        let mut sources = Sources::find(root);
        let levels = Arc::<Levels>::default();
        let has = [sources.cpu.is_some(), sources.pressure.is_some(), sources.memory.is_some()];
        let mut before = Before::default();
        before.sample(&mut sources, &levels);
        let task = tokio::spawn({
            let levels = levels.clone();
            async move {
                loop {
                    tokio::time::sleep(PERIOD).await;
                    before.sample(&mut sources, &levels);
                }
            }
        });
        Self(Arc::new(Shared { levels, has, task: AbortOnDrop::new(task.abort_handle()) }))
    }

    /// Returns a monitor of the processor time that is used, of that which may be.
    ///
    /// # Errors
    /// If the machine has no numbers for it.
    pub fn cpu(&self) -> Result<SystemMonitor, Unsupported> {
        self.monitor(Resource::Cpu)
    }

    /// Returns a monitor of the share of the time in which a task of the process waited for a
    /// processor ("some" of the kernel's pressure stall information).
    ///
    /// # Errors
    /// If the machine has no numbers for it.
    pub fn cpu_pressure(&self) -> Result<SystemMonitor, Unsupported> {
        self.monitor(Resource::CpuPressure)
    }

    /// Returns a monitor of the memory that is used, of that which may be.
    ///
    /// # Errors
    /// If the machine has no numbers for it.
    pub fn memory(&self) -> Result<SystemMonitor, Unsupported> {
        self.monitor(Resource::Memory)
    }

    fn monitor(&self, resource: Resource) -> Result<SystemMonitor, Unsupported> {
        let monitor = SystemMonitor { system: self.clone(), resource };
        self.0.has[resource as usize].then_some(monitor).ok_or(Unsupported { monitor: resource.name() })
    }
}

/// A monitor of a [`SystemLoad`]. The level is between 0 and 1, or a little more.
#[derive(Clone, Debug)]
pub struct SystemMonitor {
    system: SystemLoad,
    resource: Resource,
}

impl Monitor for SystemMonitor {
    fn name(&self) -> &'static str {
        self.resource.name()
    }

    fn level(&self) -> f64 {
        if self.system.0.task.has_ended() {
            return 0.0;
        }
        f64::from_bits(self.system.0.levels[self.resource as usize].load(Ordering::Relaxed))
    }
}

/// The numbers of the last sample that only grow.
#[derive(Debug, Default)]
struct Before {
    cpu: Option<Counter>,
    pressure: Option<Counter>,
}

impl Before {
    /// Reads all sources. The files are not on a disk, so that reading them does not block. One
    /// that cannot be read leaves a level of 0: a lack of numbers is no overload.
    fn sample(&mut self, sources: &mut Sources, levels: &Levels) {
        let now = TokioClock.now();
        let cpu = sources.cpu.as_ref().map(|cpu| cpu.used(now));
        let pressure = sources.pressure.as_ref().map(|pressure| pressure.stalled(now));
        let memory = sources.memory.as_ref().map(|memory| memory.used());
        let level = |resource: Resource, level: Option<f64>| {
            levels[resource as usize].store(level.unwrap_or(0.0).to_bits(), Ordering::Relaxed);
        };
        level(Resource::Cpu, rate(&mut self.cpu, cpu));
        level(Resource::CpuPressure, rate(&mut self.pressure, pressure));
        level(Resource::Memory, memory.and_then(io::Result::ok));
    }
}

/// Returns by how much a counter grew per second since the last sample.
fn rate(before: &mut Option<Counter>, now: Option<io::Result<Counter>>) -> Option<f64> {
    let now = now?.ok()?;
    let rate = before.as_ref().and_then(|before| now.rate_since(before));
    *before = Some(now);
    rate
}

#[cfg(test)]
mod tests;
