//! The disk of SQLite's files is full for some seconds.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

#[derive(Debug, Default)]
pub(super) struct FullDisk(Option<(CancellationToken, JoinHandle<()>)>);

const BALLAST: &str = "ballast";

impl Trouble for FullDisk {
    fn name(&self) -> &'static str {
        "full-disk"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        world.place.small_disk.clone()
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(8)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let path = world.place.data.join(BALLAST);
            let mut ballast = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            let stop = CancellationToken::new();
            let stopped = stop.clone();
            let filling = tokio::task::spawn_blocking(move || {
                // Again and again: a database that shrinks a file leaves room.
                while !stopped.is_cancelled() {
                    fill(&mut ballast);
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            self.0 = Some((stop, filling));
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            if let Some((stop, filling)) = self.0.take() {
                stop.cancel();
                filling.await?;
            }
            free(&world.place.data)
        }
        .boxed_local()
    }
}

/// Writes until the disk is full, in ever smaller pieces.
fn fill(ballast: &mut File) {
    for size in [1 << 20, 1 << 12, 1] {
        while ballast.write_all(&vec![0; size]).is_ok() {}
    }
}

fn free(data: &Path) -> anyhow::Result<()> {
    let path = data.join(BALLAST);
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}
