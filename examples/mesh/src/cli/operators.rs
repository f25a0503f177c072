//! What operators reach, and what is told about a service: the admin listener and its token, and
//! where spans go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use mesh::admin::{AdminDoor, Token};
use mesh::launch::Name;
use mesh::telemetry::{Collector, TraceConfig};

use super::values::share;

/// The operators' listener of a service: metrics, state, sagas, dead letters and parked events; on
/// the gateway also the dashboard.
#[derive(Args, Debug)]
pub(crate) struct AdminArgs {
    /// Address for operators. Any address but loopback needs a token. Default: loopback, on the
    /// service's own port plus 1000.
    #[arg(long, env = "MESH_ADMIN_LISTEN")]
    pub(crate) admin_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) token: TokenArgs,
}

/// The operators' token, from `MESH_ADMIN_TOKEN` or a file. It is not an argument, because other
/// users of a machine can read the arguments of a process.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// File with the operators' token, at least 16 characters. The token can also be in the
    /// variable MESH_ADMIN_TOKEN.
    #[arg(long, env = "MESH_ADMIN_TOKEN_FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,
}

impl AdminArgs {
    /// Listens for operators.
    pub(crate) fn door(&self, name: Name) -> anyhow::Result<AdminDoor> {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), name.default_admin_port());
        Ok(AdminDoor::bind(self.admin_listen.unwrap_or(default), self.token.token()?)?)
    }
}

impl TokenArgs {
    /// Returns the token of the file or of the environment.
    pub(crate) fn token(&self) -> anyhow::Result<Option<Token>> {
        let variable = std::env::var("MESH_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
        self.token_or(variable)
    }

    pub(super) fn token_or(&self, variable: Option<String>) -> anyhow::Result<Option<Token>> {
        match (&self.admin_token_file, variable) {
            (Some(_), Some(_)) => bail!("admin-token-file: MESH_ADMIN_TOKEN is set as well; set only one of them"),
            (Some(path), None) => Ok(Some(Token::read(path)?)),
            (None, Some(token)) => Ok(Some(Token::new(&token)?)),
            (None, None) => Ok(None),
        }
    }
}

/// Where spans are exported to.
#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// OTLP collector over gRPC, such as http://host:4317. Spans also go to the gateway's
    /// dashboard.
    #[arg(long, env = "MESH_OTLP")]
    otlp: Option<String>,
    /// Continue the traces of the gateway's callers. Only behind a proxy that sets traceparent
    /// itself; otherwise their traces are linked.
    #[arg(long, env = "MESH_TRUST_TRACEPARENT")]
    pub(crate) trust_traceparent: bool,
    /// Share of traces that are sampled, 0 to 1.
    #[arg(long, env = "MESH_TRACE_SAMPLE", default_value = "1", value_parser = share)]
    trace_sample: f64,
}

impl TraceArgs {
    /// Exports to the collector of `--otlp`, and to `page`.
    pub(crate) fn config(&self, page: Option<Collector>) -> Option<TraceConfig> {
        let collectors = self.otlp.iter().map(Collector::new).chain(page).collect();
        Some(TraceConfig { collectors, sample: self.trace_sample })
    }
}
