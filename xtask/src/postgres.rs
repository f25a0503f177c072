//! A PostgreSQL server for the tests: Debian's programs, with a temporary data directory and a free
//! port. It is removed afterwards.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::debian::{self, is_root};
use crate::run::{output, program, target, works};

/// The environment variable in which the tests expect a server. If it is set, that server is used
/// and none is started.
pub(crate) const VARIABLE: &str = "BUTTRESS_TEST_POSTGRES";
/// Prefix of the names of data directories, followed by the id of the process that owns it.
const PREFIX: &str = "postgres-";
/// Number of polls while the server starts, and the pause between them: 30 s in total.
const PATIENCE: (u32, Duration) = (600, Duration::from_millis(50));

/// A running server. Dropping it stops the server and deletes its data.
pub(crate) struct Server {
    process: Child,
    data: PathBuf,
    port: u16,
}

/// Settings of every server.
const SETTINGS: [&str; 5] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    // Many tests run in parallel, each with one or more pools.
    "max_connections=300",
    // The data need not survive a crash of the machine.
    "fsync=off",
    "full_page_writes=off",
];
/// Arguments of `initdb`, before the directory.
const INITIALIZE: [&str; 5] = ["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "-D"];

/// The user to run the server as if we are root, because PostgreSQL refuses to run as root.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// Installs the server if it is missing and installing is allowed.
pub(crate) fn install() -> anyhow::Result<()> {
    // With RUNLEVEL=1 the Debian package does not start a server.
    let installed = || std::env::var_os(VARIABLE).is_some() || programs().is_some();
    debian::install("PostgreSQL", &["postgresql"], &[("RUNLEVEL", "1")], installed)
}

/// Passes a server to the tests: the one named in the environment, or one started here. Keep it
/// until the tests are done.
pub(crate) fn serve(tests: &mut Command) -> anyhow::Result<Option<Server>> {
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(None);
    }
    let Some(programs) = programs() else { return Ok(None) };
    // Another program may take the port between its choice and the server's start.
    let server = Server::start(&programs).or_else(|error| {
        println!("{error:#}; once more");
        Server::start(&programs)
    })?;
    tests.env(VARIABLE, format!("postgres://postgres@127.0.0.1:{}", server.port));
    Ok(Some(server))
}

/// The newest server installed by Debian, or the one on the path.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut versions: Vec<_> =
        versions.filter_map(|entry| Some((number(&entry.path())?, entry.path().join("bin")))).collect();
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = versions.into_iter().rev().map(|(_, bin)| bin).chain(std::env::split_paths(&path));
    let complete = |bin: &PathBuf| ["initdb", "pg_isready", "postgres"].iter().all(|name| bin.join(name).is_file());
    found.into_iter().find(complete)
}

impl Server {
    fn start(programs: &Path) -> anyhow::Result<Self> {
        let user = if is_root()? { Some(User::named("postgres")?) } else { None };
        let data = directory(user)?;
        // The kernel stops the server when this process ends, for any reason.
        let leash = ["--pdeathsig", "INT", "--"];
        let leashed = works(Command::new("setpriv").args(leash).arg("true"));
        let as_user = |name: &str| {
            let mut command = if leashed {
                let mut setpriv = Command::new("setpriv");
                setpriv.args(leash).arg(programs.join(name));
                setpriv
            } else {
                Command::new(programs.join(name))
            };
            // The current directory may not be readable by that user.
            command.current_dir(&data).stdin(Stdio::null());
            if let Some(User { uid, gid }) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        output(as_user("initdb").args(INITIALIZE).arg(&data))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let log = fs::File::create(data.join("server.log"))?;
        let mut command = as_user("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        // No test stops the server, so a commit may be written later.
        for setting in SETTINGS.into_iter().chain(["synchronous_commit=off"]) {
            command.args(["-c", setting]);
        }
        let process = command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start postgres")?;
        let mut server = Self { process, data: data.clone(), port };
        for _ in 0..PATIENCE.0 {
            let ready = ["-q", "-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()];
            if works(as_user("pg_isready").args(ready)) {
                println!("PostgreSQL listens on 127.0.0.1:{port}, process {}", server.process.id());
                return Ok(server);
            }
            if let Some(status) = server.process.try_wait()? {
                bail!("postgres: {status}\n{}", fs::read_to_string(data.join("server.log")).unwrap_or_default());
            }
            sleep(PATIENCE.1);
        }
        bail!("postgres is not ready after {:?}", PATIENCE.0 * PATIENCE.1);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A fast shutdown, which closes open connections.
        stop(self.process.id());
        if let Err(error) = self.process.wait() {
            eprintln!("postgres has not ended: {error}");
        }
        if let Err(error) = fs::remove_dir_all(&self.data) {
            eprintln!("{} is left: {error}", self.data.display());
        }
    }
}

impl User {
    fn named(name: &str) -> anyhow::Result<Self> {
        let id = |flag: &str| -> anyhow::Result<u32> { Ok(output(program("id").args([flag, name]))?.trim().parse()?) };
        Ok(Self { uid: id("-u")?, gid: id("-g")? })
    }
}

fn stop(pid: u32) {
    works(program("kill").args(["-INT", &pid.to_string()]));
}

/// A server that is stopped and started with shell commands. Dropping it stops the server and
/// deletes its data.
pub(crate) struct Controlled {
    /// `pg_ctl` with the data directory, as the right user.
    control: String,
    data: PathBuf,
    port: u16,
}

impl Controlled {
    pub(crate) fn start() -> anyhow::Result<Self> {
        install()?;
        let programs = programs().context("PostgreSQL is not installed")?;
        let user = if is_root()? { Some(User::named("postgres")?) } else { None };
        let data = directory(user)?;
        let become_user = user.map_or_else(String::new, |User { uid, gid }| {
            format!("setpriv --reuid={uid} --regid={gid} --clear-groups ")
        });
        let (bin, at) = (programs.display(), data.display());
        let control = format!("cd '{at}' && {become_user}'{bin}/pg_ctl' -D '{at}' -s -w");
        let initialize = format!("cd '{at}' && {become_user}'{bin}/initdb' {} '{at}'", INITIALIZE.join(" "));
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let server = Self { control, data, port };
        output(program("sh").args(["-c", &initialize]))?;
        // Its output goes to the log; a pipe would stay open as long as the server runs.
        ensure!(works(program("sh").args(["-c", &server.start_command()])), "PostgreSQL does not start");
        println!("PostgreSQL listens on 127.0.0.1:{port}");
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}", self.port)
    }

    /// Stops the server without a checkpoint, as a crash of it would.
    pub(crate) fn stop_command(&self) -> String {
        format!("{} -m immediate stop", self.control)
    }

    pub(crate) fn start_command(&self) -> String {
        let settings: String = SETTINGS.iter().map(|setting| format!(" -c {setting}")).collect();
        format!("{} -l server.log -o '-p {}{settings}' start", self.control, self.port)
    }
}

impl Drop for Controlled {
    fn drop(&mut self) {
        works(program("sh").args(["-c", &self.stop_command()]));
        if let Err(error) = fs::remove_dir_all(&self.data) {
            eprintln!("{} is left: {error}", self.data.display());
        }
    }
}

/// Creates an empty directory owned by the user: in the target directory, or, if the user has no
/// access there, in the temporary directory.
fn directory(user: Option<User>) -> anyhow::Result<PathBuf> {
    let own = format!("{PREFIX}{}", std::process::id());
    let mut refused = Vec::new();
    for parent in [target(), std::env::temp_dir()] {
        fs::create_dir_all(&parent)?;
        sweep(&parent);
        let data = parent.join(&own);
        fs::create_dir(&data)?;
        let Some(User { uid, gid }) = user else { return Ok(data) };
        std::os::unix::fs::chown(&data, Some(uid), Some(gid))?;
        if works(Command::new("test").arg("-w").arg(&data).current_dir("/").uid(uid).gid(gid)) {
            return Ok(data);
        }
        fs::remove_dir(&data)?;
        refused.push(parent.display().to_string());
    }
    bail!("the user postgres can write neither to {}", refused.join(" nor to "))
}

/// Stops servers and deletes data left by runs that were killed.
fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        let Some(owner) = owner.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) else { continue };
        let pid = fs::read_to_string(entry.path().join("postmaster.pid")).unwrap_or_default();
        let pid = pid.lines().next().and_then(|line| line.parse().ok());
        if let Some(pid) = pid.filter(|pid| runs_in(*pid, &entry.path())) {
            eprintln!("stopping the server {pid}, left by {owner}");
            stop(pid);
            for _ in 0..PATIENCE.0 {
                if !Path::new(&format!("/proc/{pid}")).exists() {
                    break;
                }
                sleep(PATIENCE.1);
            }
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Whether a process is the server of a data directory. Its id may have been reused by another
/// process.
fn runs_in(pid: u32, data: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
}
