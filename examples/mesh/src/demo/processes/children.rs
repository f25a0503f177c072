//! Runs the services as child processes.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::clock::now;
use crate::customers::MANY;
use crate::db::{Databases, Files};
use crate::demo::Home;
use crate::launch::Name;
use crate::probe;
use crate::token::{KEY_IN_DIR, Tokens};

/// A process that is not ready after this time is treated as failed.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than drain delay, grace period and the last events together.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Children {
    program: PathBuf,
    /// Arguments common to all services.
    arguments: Vec<String>,
    /// URL of the database server. Passed in the environment, because every user of the machine can
    /// read the arguments of a process, and the URL may contain a password.
    server: Option<String>,
    ports: HashMap<&'static str, SocketAddr>,
    /// Where the operators of each are served.
    admin: HashMap<&'static str, SocketAddr>,
    /// Directory of the log files.
    logs: PathBuf,
    tokens: Tokens,
    /// More variables of each service's environment.
    environment: HashMap<&'static str, Vec<(String, String)>>,
    running: HashMap<&'static str, Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// The child's standard input. It closes when this process ends, which ends the child
    /// (`--with-parent`). Kept outside `child`, because `Child::wait` closes the standard input it
    /// owns.
    _life: Option<ChildStdin>,
}

impl Children {
    /// `server` is the URL of a database server and the prefix of its database names.
    pub(crate) fn new(
        home: &Home,
        server: Option<(&str, &str)>,
        kafka: Option<&str>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let ports = free_ports(seed, &HashMap::new())?;
        let admin = free_ports(seed.wrapping_add(1), &ports)?;
        let mut arguments = vec!["--with-parent".to_owned()];
        let mut postgres = None;
        let mut say = |flag: &str, value: String| arguments.extend([format!("--{flag}"), value]);
        say("seed", seed.to_string());
        say("drain-delay", "0.2".to_owned());
        say("orders-per-second-per-customer", MANY.to_string());
        for name in Name::ALL {
            say(name.as_str(), ports[name.as_str()].to_string());
            say(&format!("{}-admin", name.as_str()), admin[name.as_str()].to_string());
        }
        if let Databases::Files(Files(dir)) = &home.databases {
            say("data-dir", dir.display().to_string());
        }
        if let Some((url, prefix)) = server {
            say("database-prefix", prefix.to_owned());
            postgres = Some(url.to_owned());
        }
        if let Some(brokers) = kafka {
            say("kafka", brokers.to_owned());
        }
        let key = home.dir.join(KEY_IN_DIR);
        say("token-key-file", key.display().to_string());
        Tokens::create_key(&key)?;
        let tokens = Tokens::from_file(&key)?;
        let (logs, environment, running) = (home.dir.clone(), HashMap::new(), HashMap::new());
        Ok(Self { program, arguments, server: postgres, ports, admin, logs, tokens, environment, running })
    }

    /// Issues tokens for the gateway's customers.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Sets more variables of a service's environment, from its next start on.
    pub(crate) fn set_environment(&mut self, name: Name, variables: Vec<(String, String)>) {
        self.environment.insert(name.as_str(), variables);
    }

    pub(crate) fn url(&self, name: Name) -> String {
        format!("http://{}", self.address(name))
    }

    pub(crate) fn address(&self, name: Name) -> SocketAddr {
        self.ports[name.as_str()]
    }

    /// Path of a service's log file.
    pub(crate) fn log(&self, name: Name) -> PathBuf {
        self.logs.join(format!("{}.log", name.as_str()))
    }

    /// Process id of a service, if it runs.
    pub(crate) fn pid(&self, name: Name) -> Option<u32> {
        self.running.get(name.as_str())?.child.id()
    }

    pub(crate) async fn start_all(&mut self) -> anyhow::Result<()> {
        for name in Name::ALL {
            self.start(name)?;
        }
        for name in Name::ALL {
            self.until_ready(name).await?;
        }
        Ok(())
    }

    /// Starts a service, at the same address each time.
    pub(crate) fn start(&mut self, name: Name) -> anyhow::Result<()> {
        let path = self.log(name);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut child = Command::new(&self.program)
            .envs(self.server.as_ref().map(|url| ("MESH_POSTGRES", url)))
            .envs(for_librdkafka())
            .envs(self.environment.get(name.as_str()).into_iter().flatten().map(|(name, value)| (name, value)))
            .arg(name.as_str())
            .args(&self.arguments)
            .args(["--listen", &self.ports[name.as_str()].to_string()])
            .args(["--admin-listen", &self.admin[name.as_str()].to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", name.as_str()))?;
        let life = child.stdin.take();
        self.running.insert(name.as_str(), Running { child, _life: life });
        Ok(())
    }

    /// Waits until a service is ready. Returns how long it took.
    pub(crate) async fn until_ready(&mut self, name: Name) -> anyhow::Result<Duration> {
        let (start, addr) = (now(), self.ports[name.as_str()]);
        let Some(running) = self.running.get_mut(name.as_str()) else { bail!("{} is not running", name.as_str()) };
        tokio::select! {
            () = probe::ready(addr) => Ok(start.elapsed()),
            how = running.child.wait() => bail!("{} ended too early, {}: see its log", name.as_str(), how?),
            () = tokio::time::sleep(START_TIMEOUT) => bail!("{} was not ready in time", name.as_str()),
        }
    }

    /// Sends SIGKILL: the process gets no chance to flush, or to close its connections.
    pub(crate) async fn kill(&mut self, name: Name) -> anyhow::Result<()> {
        match self.running.remove(name.as_str()) {
            Some(mut running) => running.child.kill().await.with_context(|| format!("cannot kill {}", name.as_str())),
            None => Ok(()),
        }
    }

    /// Sends a signal to a service.
    pub(crate) fn signal(&mut self, name: Name, signal: Signal) {
        if let Some(running) = self.running.get_mut(name.as_str()) {
            send(&mut running.child, signal);
        }
    }

    /// Waits for the end of a service that was told to exit.
    pub(crate) async fn until_ended(&mut self, name: Name, limit: Duration) -> anyhow::Result<ExitStatus> {
        let Some(running) = self.running.get_mut(name.as_str()) else { bail!("{} is not running", name.as_str()) };
        let ended = timeout(limit, running.child.wait()).await;
        let status = ended.with_context(|| format!("{} has not ended after {limit:?}", name.as_str()))??;
        self.running.remove(name.as_str());
        Ok(status)
    }

    /// Returns the services that ended by themselves since the last call.
    pub(crate) fn take_ended(&mut self) -> Vec<(Name, ExitStatus)> {
        let ended = |name: Name| Some((name, self.running.get_mut(name.as_str())?.child.try_wait().ok()??));
        let ended: Vec<_> = Name::ALL.into_iter().filter_map(ended).collect();
        for (name, _) in &ended {
            self.running.remove(name.as_str());
        }
        ended
    }

    /// Stops all services, callers before callees. Returns whether all of them exited with success.
    pub(crate) async fn stop_all(&mut self) -> bool {
        let mut clean = true;
        for name in Name::ALL.into_iter().rev() {
            let Some(mut running) = self.running.remove(name.as_str()) else { continue };
            send(&mut running.child, Signal::Term);
            clean &= matches!(timeout(STOP_TIMEOUT, running.child.wait()).await, Ok(Ok(how)) if how.success());
        }
        clean
    }
}

/// The signals that a service may get.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// What an orchestrator sends first.
    Term,
    /// Freezes the process.
    Stop,
    /// Thaws it.
    Cont,
}

#[cfg(unix)]
fn send(child: &mut Child, signal: Signal) {
    use rustix::process::{self, Pid, kill_process};
    let signal = match signal {
        Signal::Term => process::Signal::TERM,
        Signal::Stop => process::Signal::STOP,
        Signal::Cont => process::Signal::CONT,
    };
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    // The child may have exited already; waiting for it reports that.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

#[cfg(not(unix))]
fn send(child: &mut Child, signal: Signal) {
    if matches!(signal, Signal::Term) {
        let _ = child.start_kill();
    }
}

/// What keeps a fault of librdkafka from ending a service, unless our own environment says
/// something else.
fn for_librdkafka() -> Option<(&'static str, &'static str)> {
    #[cfg(feature = "kafka")]
    let settings = std::env::var_os("GLIBC_TUNABLES").is_none().then_some(buttress_durable::bus::kafka::GLIBC_TUNABLES);
    #[cfg(not(feature = "kafka"))]
    let settings = None;
    settings.map(|settings| ("GLIBC_TUNABLES", settings))
}

/// Picks a free port per service. The range is below the ephemeral ports, so that no connection
/// takes the port while the service is down.
fn free_ports(
    seed: u64,
    others: &HashMap<&'static str, SocketAddr>,
) -> anyhow::Result<HashMap<&'static str, SocketAddr>> {
    // The process id is mixed in, so that two demos with the same seed do not try the same ports.
    let mut rng = fastrand::Rng::with_seed(seed ^ u64::from(std::process::id()));
    let mut ports = HashMap::new();
    for name in Name::ALL {
        let free = (0..1000).find_map(|_| {
            let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), rng.u16(20_000..32_000));
            let taken = ports.values().chain(others.values()).any(|other| *other == addr);
            (!taken && TcpListener::bind(addr).is_ok()).then_some(addr)
        });
        ports.insert(name.as_str(), free.context("no free port")?);
    }
    Ok(ports)
}
