//! A PostgreSQL server that the soak can stop and start, behind a [`Proxy`].

use std::process::Stdio;
use std::str::FromStr;

use anyhow::{Context, ensure};
use http::uri::Uri;
use tokio::process::Command;

use super::proxy::Proxy;

#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// URL of the server, such as `postgres://user@host:5432`.
    pub url: String,
    /// Prefix of the names of the databases.
    pub prefix: String,
    /// Shell commands that stop the server at once and start it again.
    pub stop: Option<String>,
    pub start: Option<String>,
}

#[derive(Debug)]
pub(super) struct Server {
    options: ServerOptions,
    pub(super) proxy: Proxy,
}

impl Server {
    pub(super) async fn new(options: ServerOptions) -> anyhow::Result<Self> {
        let uri = Uri::from_str(&options.url).context("postgres: must be a URL")?;
        let host = uri.host().context("postgres: the URL must name a host")?;
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(5432));
        Ok(Self { options, proxy: Proxy::start(address).await.context("cannot start the proxy")? })
    }

    /// The URL that leads through the proxy.
    pub(super) fn url(&self) -> anyhow::Result<String> {
        let uri = Uri::from_str(&self.options.url)?;
        let user = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
        let user = user.map_or_else(String::new, |(user, _)| format!("{user}@"));
        Ok(format!("postgres://{user}{}", self.proxy.address()))
    }

    pub(super) fn can_be_stopped(&self) -> Result<(), String> {
        let both = self.options.stop.is_some() && self.options.start.is_some();
        both.then_some(()).ok_or_else(|| "it needs --postgres-stop and --postgres-start".to_owned())
    }

    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        shell(self.options.stop.as_deref()).await
    }

    pub(super) async fn start(&self) -> anyhow::Result<()> {
        shell(self.options.start.as_deref()).await
    }
}

async fn shell(command: Option<&str>) -> anyhow::Result<()> {
    let Some(command) = command else { return Ok(()) };
    let mut shell = Command::new("sh");
    // No pipes: a server that stays in the background would hold them open.
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = shell.status().await.with_context(|| format!("cannot run {command}"))?;
    ensure!(status.success(), "{command}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_services_reach_the_server_through_the_proxy_with_the_same_user() {
        let options = |url: &str| ServerOptions { url: url.into(), prefix: "p_".into(), stop: None, start: None };
        let server = Server::new(options("postgres://me:secret@127.0.0.1:1")).await.unwrap();
        assert_eq!(server.url().unwrap(), format!("postgres://me:secret@{}", server.proxy.address()));
        assert!(server.can_be_stopped().is_err());
        assert!(Server::new(options("/var/run")).await.is_err());
    }

    #[tokio::test]
    async fn a_command_that_fails_is_an_error() {
        assert!(shell(Some("exit 0")).await.is_ok());
        assert!(shell(Some("exit 3")).await.is_err());
        assert!(shell(None).await.is_ok());
    }
}
