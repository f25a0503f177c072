//! `mesh ops`: what waits for an operator, and decisions about it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use mesh::admin::attention::{Action, Decision, Filter, Item, Kind, Outcome, Which};
use mesh::clock::now_ms;
use mesh::ops::{Answers, Gateway, Of, Table};
use serde::Serialize;

use crate::cli::TokenArgs;

/// Shows what waits for an operator, and decides about it
#[derive(Args, Debug)]
pub(crate) struct Ops {
    /// Base URL of the gateway's admin listener.
    #[arg(long, global = true, env = "MESH_OPS_URL", default_value = "http://127.0.0.1:9080")]
    url: String,
    #[command(flatten)]
    token: TokenArgs,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// All services: ready, degraded, and what waits (the default).
    Status,
    /// Sagas that are stuck. With a subcommand: decide about them.
    Sagas {
        /// Sagas with this status instead: running, compensating, completed, compensated or
        /// resolved. They can only be looked at.
        #[arg(long, default_value = "stuck")]
        status: String,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(subcommand)]
        action: Option<SagaAction>,
    },
    /// Events that a consumer could not handle. With a subcommand: decide about them.
    DeadLetters {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(subcommand)]
        action: Option<LetterAction>,
    },
    /// Events that the bus rejects. With a subcommand: decide about them.
    Parked {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(subcommand)]
        action: Option<ParkedAction>,
    },
}

#[derive(Debug, Subcommand)]
enum SagaAction {
    /// Try the step again, with fresh attempts.
    Retry(Selected),
    /// Continue without the step, which you have done or undone by hand.
    Skip(Selected),
    /// Close the saga as it is, without any further call. Its order is confirmed if it was to be
    /// confirmed next, and otherwise cancelled, also if it is stuck at the payment: undo by hand
    /// what was reserved or charged.
    Resolve(Selected),
}

#[derive(Debug, Subcommand)]
enum LetterAction {
    /// Publish them to their topic again.
    Redrive(Selected),
    /// Drop them for good.
    Discard(Selected),
}

#[derive(Debug, Subcommand)]
enum ParkedAction {
    /// Let the relay try them again.
    Retry(Selected),
    /// Drop them for good.
    Discard(Selected),
}

/// Conditions on what is listed or decided. All must hold.
#[derive(Args, Clone, Debug)]
struct FilterArgs {
    /// Definition of the saga, or type of the event.
    #[arg(long)]
    name: Option<String>,
    /// Step of the saga, or consumer group of the dead letter.
    #[arg(long)]
    at: Option<String>,
    /// Part of the error's text.
    #[arg(long)]
    error: Option<String>,
    /// Only what has not changed for so many seconds.
    #[arg(long, value_name = "SECONDS")]
    older_than: Option<u32>,
    /// Maximum number per service, 1 to 1000.
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

/// Which items a decision is about.
#[derive(Args, Clone, Debug)]
struct Selected {
    /// Their ids, as the list shows them.
    #[arg(conflicts_with_all = ["all", "name", "at", "error", "older_than"])]
    ids: Vec<String>,
    /// All of them. Repeated until none is left.
    #[arg(long, conflicts_with_all = ["name", "at", "error", "older_than"])]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Why. Required to resolve a saga, and stored with it.
    #[arg(long, default_value = "")]
    note: String,
}

impl Ops {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let gateway = Gateway::new(&self.url, self.token.token()?);
        let json = self.json;
        let (kind, filter, chosen) = match self.what.unwrap_or(What::Status) {
            What::Status => return status(&gateway, json).await,
            What::Sagas { status, filter, action: None } if status != "stuck" => {
                return sagas(&gateway, &status, filter.limit, json).await;
            }
            What::Sagas { filter, action, .. } => (Kind::Sagas, filter, action.map(SagaAction::split)),
            What::DeadLetters { filter, action } => (Kind::DeadLetters, filter, action.map(LetterAction::split)),
            What::Parked { filter, action } => (Kind::Parked, filter, action.map(ParkedAction::split)),
        };
        match chosen {
            None => list(&gateway, kind, &filter.filter(), json).await,
            Some((action, selected)) => decide(&gateway, kind, action, selected, json).await,
        }
    }
}

impl SagaAction {
    fn split(self) -> (Action, Selected) {
        match self {
            Self::Retry(selected) => (Action::Retry, selected),
            Self::Skip(selected) => (Action::Skip, selected),
            Self::Resolve(selected) => (Action::Resolve, selected),
        }
    }
}

impl LetterAction {
    fn split(self) -> (Action, Selected) {
        match self {
            Self::Redrive(selected) => (Action::Redrive, selected),
            Self::Discard(selected) => (Action::Discard, selected),
        }
    }
}

impl ParkedAction {
    fn split(self) -> (Action, Selected) {
        match self {
            Self::Retry(selected) => (Action::Retry, selected),
            Self::Discard(selected) => (Action::Discard, selected),
        }
    }
}

impl FilterArgs {
    fn filter(self) -> Filter {
        let Self { name, at, error, older_than, limit } = self;
        Filter { name, at, error, older_than_s: older_than, limit }
    }
}

impl Selected {
    fn which(&self) -> Which {
        if self.all {
            Which::All
        } else if self.ids.is_empty() {
            Which::Filter(self.filter.clone().filter())
        } else {
            Which::Ids(self.ids.clone())
        }
    }
}

async fn status(gateway: &Gateway, json: bool) -> anyhow::Result<ExitCode> {
    let all = gateway.overview().await?;
    if json {
        return print(&all);
    }
    let mut table =
        Table::new(["service", "state", "stuck sagas", "dead letters", "parked", "lag", "unsent", "over rate", "shed"]);
    for Of { service, said } in &all {
        let state = match said.ready {
            None => "no answer",
            Some(false) => "not ready",
            Some(true) if said.degraded.is_empty() => "ready",
            Some(true) => "degraded",
        };
        let counts =
            [said.stuck_sagas, said.dead_letters, said.parked, said.lag, said.unsent, said.over_rate, said.shed];
        // Of a service that does not answer nothing is known, and 0 would say that all is well.
        let count = |count: u64| if said.ready.is_some() { count.to_string() } else { "?".to_owned() };
        table.row([(*service).to_owned(), state.to_owned()].into_iter().chain(counts.map(count)));
    }
    print!("{table}");
    for Of { service, said } in &all {
        said.degraded.iter().for_each(|reason| println!("{service}: {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn sagas(gateway: &Gateway, status: &str, limit: u32, json: bool) -> anyhow::Result<ExitCode> {
    let sagas = gateway.sagas(status, limit).await?;
    if json {
        return print(&sagas);
    }
    let mut table = Table::new(["saga", "status", "age", "steps"]);
    for saga in &sagas {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let steps = saga["steps"].as_array().into_iter().flatten();
        let steps: Vec<_> = steps.map(|step| format!("{} {}", text(&step["name"]), text(&step["state"]))).collect();
        let age = age(saga["updated_ms"].as_i64().unwrap_or_default());
        table.row([text(&saga["id"]), text(&saga["status"]), age, steps.join(", ")]);
    }
    show(&table, || format!("no saga is {status}"))
}

async fn list(gateway: &Gateway, kind: Kind, filter: &Filter, json: bool) -> anyhow::Result<ExitCode> {
    let Answers { said: items, away } = gateway.waiting(kind, filter).await?;
    let code = report(&away);
    if json {
        print(&items)?;
        return Ok(code);
    }
    let mut table = Table::new(["service", "id", "name", "at", "order", "age", "error"]);
    for Of { service, said } in items {
        let Item { id, name, at, order, error, since_ms } = said;
        table.row([service.to_owned(), id, name, at, order, age(since_ms), error]);
    }
    let known = if away.is_empty() { "" } else { ", as far as the services answered" };
    show(&table, || match kind {
        Kind::Sagas => format!("no saga is stuck{known}"),
        Kind::DeadLetters => format!("there are no dead letters{known}"),
        Kind::Parked => format!("no event is parked{known}"),
    })?;
    Ok(code)
}

/// Names the services that did not answer. Then the command has failed in part.
fn report(away: &[&str]) -> ExitCode {
    away.iter().for_each(|service| eprintln!("{service}: no answer"));
    if away.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn decide(
    gateway: &Gateway,
    kind: Kind,
    action: Action,
    selected: Selected,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let decision = Decision { which: selected.which(), note: selected.note };
    let Answers { said: mut outcomes, mut away } = gateway.decide(kind, action, &decision).await?;
    // One call is bounded, so all of them may take several. It ends when a call does nothing more.
    while decision.which == Which::All && outcomes.iter().any(|of| of.said.more && of.said.done > 0) {
        let next = gateway.decide(kind, action, &decision).await?;
        merge(&mut outcomes, next.said);
        away = next.away;
    }
    let done: u64 = outcomes.iter().map(|of| of.said.done).sum();
    // An id belongs to one service, and the others do not know it. So it has failed if all say so.
    let everywhere = |id: &str| outcomes.iter().all(|of| of.said.failed.iter().any(|failed| failed.id == id));
    let by_id = matches!(decision.which, Which::Ids(_));
    let mut seen = HashSet::new();
    let failed: Vec<_> = outcomes
        .iter()
        .flat_map(|of| of.said.failed.iter().map(move |failed| (of.service, failed)))
        .filter(|(_, failed)| !by_id || (everywhere(&failed.id) && seen.insert(&failed.id)))
        .collect();
    if json {
        print(&outcomes)?;
    } else {
        println!("{}: {done} done, {} failed", action.as_str(), failed.len());
        failed.iter().for_each(|(service, failed)| println!("{service} {}: {}", failed.id, failed.error));
        if outcomes.iter().any(|of| of.said.more) {
            println!("there are more: repeat the command");
        }
    }
    let code = report(&away);
    Ok(if failed.is_empty() { code } else { ExitCode::FAILURE })
}

/// Adds the outcomes of another call. A service that has stopped to answer keeps its last one.
fn merge(outcomes: &mut Vec<Of<Outcome>>, next: Vec<Of<Outcome>>) {
    for all in outcomes.iter_mut() {
        all.said.more = false;
    }
    for next in next {
        match outcomes.iter_mut().find(|all| all.service == next.service) {
            Some(all) => {
                all.said.done += next.said.done;
                all.said.failed = next.said.failed;
                all.said.more = next.said.more;
            }
            None => outcomes.push(next),
        }
    }
}

fn show(table: &Table, nothing: impl FnOnce() -> String) -> anyhow::Result<ExitCode> {
    if table.is_empty() {
        println!("{}", nothing())
    } else {
        print!("{table}")
    }
    Ok(ExitCode::SUCCESS)
}

fn print(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(ExitCode::SUCCESS)
}

/// Time since a moment, in its largest unit.
fn age(since_ms: i64) -> String {
    let age = Duration::from_millis(u64::try_from(now_ms().saturating_sub(since_ms)).unwrap_or(0)).as_secs();
    match age {
        0..120 => format!("{age} s"),
        120..7_200 => format!("{} min", age / 60),
        7_200..172_800 => format!("{} h", age / 3_600),
        _ => format!("{} d", age / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn ops(args: &[&str]) -> Ops {
        match Cli::parse_from(["mesh", "ops"].iter().chain(args)).command {
            Command::Ops(ops) => ops,
            other => panic!("{other:?}"),
        }
    }

    fn selected(args: &[&str]) -> (Action, Which) {
        let (action, selected) = match ops(args).what.unwrap() {
            What::Sagas { action, .. } => action.unwrap().split(),
            What::DeadLetters { action, .. } => action.unwrap().split(),
            What::Parked { action, .. } => action.unwrap().split(),
            What::Status => panic!("no decision"),
        };
        (action, selected.which())
    }

    #[test]
    fn decisions_are_about_ids_or_a_filter_or_all() {
        assert_eq!(selected(&["sagas", "retry", "--all"]), (Action::Retry, Which::All));
        let ids = Which::Ids(vec!["a".into(), "b".into()]);
        assert_eq!(selected(&["sagas", "resolve", "a", "b", "--note", "paid"]), (Action::Resolve, ids));
        let filter = Filter { error: Some("timed out".into()), older_than_s: Some(60), ..Filter::default() };
        let args = ["dead-letters", "redrive", "--error", "timed out", "--older-than", "60"];
        assert_eq!(selected(&args), (Action::Redrive, Which::Filter(filter)));
        assert_eq!(selected(&["parked", "discard", "a"]), (Action::Discard, Which::Ids(vec!["a".into()])));
        for wrong in [&["sagas", "retry", "a", "--all"][..], &["sagas", "retry", "--all", "--name", "order"]] {
            assert!(Cli::try_parse_from(["mesh", "ops"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_status_is_the_default_and_json_may_be_said_anywhere() {
        assert!(ops(&[]).what.is_none() && !ops(&[]).json);
        assert!(ops(&["--json", "sagas"]).json && ops(&["sagas", "--json"]).json);
        let What::Sagas { status, filter, action } = ops(&["sagas", "--status", "running"]).what.unwrap() else {
            panic!("not sagas")
        };
        assert_eq!((status.as_str(), filter.limit, action.is_none()), ("running", 100, true));
    }

    #[test]
    fn an_age_has_its_largest_unit() {
        let ago = |seconds: i64| age(now_ms() - seconds * 1_000 - 100);
        assert_eq!([ago(5), ago(600), ago(10_800), ago(864_000)], ["5 s", "10 min", "3 h", "10 d"]);
    }
}
