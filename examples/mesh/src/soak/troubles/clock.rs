//! The wall clocks of services jump, with libfaketime. Monotonic clocks are left alone, as a step
//! of a real clock leaves them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;

use crate::launch::Name;
use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

/// Where Debian and others put the library.
const DIRECTORIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib64/faketime",
    "/usr/lib/faketime",
];
const LIBRARY: &str = "libfaketimeMT.so.1";

/// One file per service, which holds the offset of its clock.
#[derive(Debug)]
pub(in crate::soak) struct Clocks {
    library: PathBuf,
    dir: PathBuf,
}

impl Clocks {
    /// Fails with the reason if the library is missing.
    pub(in crate::soak) fn new(dir: &Path) -> Result<Self, String> {
        let found = DIRECTORIES.into_iter().map(|dir| Path::new(dir).join(LIBRARY)).find(|path| path.is_file());
        let library = found.ok_or_else(|| format!("{LIBRARY} is missing (Debian's package faketime has it)"))?;
        let clocks = Self { library, dir: dir.to_owned() };
        for name in Name::ALL {
            clocks.set(name, 0).map_err(|error| format!("cannot write the clock: {error}"))?;
        }
        Ok(clocks)
    }

    fn path(&self, name: Name) -> PathBuf {
        self.dir.join(format!("{}.clock", name.as_str()))
    }

    pub(in crate::soak) fn environment(&self, name: Name) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.path(name))),
            // Seconds between two looks at the file. Without the cache, it is read for every
            // reading of the clock.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // The name in older versions.
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Sets the offset of a clock in seconds.
    fn set(&self, name: Name, seconds: i64) -> std::io::Result<()> {
        let (path, new) = (self.path(name), self.path(name).with_extension("new"));
        // Replaced at once, so that no process reads half a file.
        fs::write(&new, format!("{seconds:+}\n"))?;
        fs::rename(new, path)
    }
}

/// The clock of one service jumps an hour ahead and back, or those of all services; in turns.
#[derive(Debug, Default)]
pub(super) struct Jump {
    times: usize,
}

const HOUR: i64 = 3_600;

impl Trouble for Jump {
    fn name(&self) -> &'static str {
        "clock-jump"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        world.clocks.as_ref().map(drop).map_err(Clone::clone)
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let victims = if self.times.is_multiple_of(2) { vec![world.any()] } else { Name::ALL.into() };
            self.times += 1;
            for victim in victims {
                world.say(format_args!("  the clock of {} jumps an hour ahead", victim.as_str()));
                if let Ok(clocks) = &world.clocks {
                    clocks.set(victim, HOUR)?;
                }
            }
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            if let Ok(clocks) = &world.clocks {
                Name::ALL.into_iter().try_for_each(|name| clocks.set(name, 0))?;
            }
            Ok(())
        }
        .boxed_local()
    }
}
