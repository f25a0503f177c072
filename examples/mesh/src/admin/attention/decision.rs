//! The items that an operator selects, and the result of the decision.

use serde::{Deserialize, Serialize};

use super::{Action, Item, Kind, Queue, QueueError};

/// Selects items. All conditions must hold; the default has none and selects the first 100.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The definition of a saga, or the type of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The step of a saga, or the consumer group of a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// A part of the error's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Only items that have not changed for this time, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than_s: Option<u32>,
    /// Maximum number of items, 1 to 1,000. Default: 100. One call does not do more, so that it
    /// ends within the caller's patience; repeat it while [`Outcome::more`] is true.
    pub limit: u32,
}

/// Which items are meant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those with these ids.
    Ids(Vec<String>),
    /// Those that a filter with at least one condition selects.
    Filter(Filter),
    /// All, 100 per call.
    All,
}

/// What an operator decides: the body of `POST /admin/attention/{kind}/{action}`, for example
/// `{"which": {"filter": {"error": "timed out"}}}`, `{"which": {"ids": ["..."]}}` or
/// `{"which": "all"}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub which: Which,
    /// Why. Required to resolve a saga, and stored with it.
    #[serde(default)]
    pub note: String,
}

/// The result of a decision.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Outcome {
    /// Number of items that the action was done to.
    pub done: u64,
    /// The others.
    pub failed: Vec<Failed>,
    /// More items match than one call handles.
    pub more: bool,
}

/// An item to which an action could not be done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failed {
    pub id: String,
    pub error: String,
}

/// Maximum number of items that a filter looks at.
const SCAN: u32 = 5_000;
/// Maximum number of items of one call.
const MOST: u32 = 1_000;

impl Default for Filter {
    fn default() -> Self {
        Self { name: None, at: None, error: None, older_than_s: None, limit: 100 }
    }
}

impl Filter {
    pub(super) fn check(&self) -> Result<(), String> {
        if (1..=MOST).contains(&self.limit) { Ok(()) } else { Err(format!("limit: must be between 1 and {MOST}")) }
    }

    /// Whether it has no condition.
    pub fn is_empty(&self) -> bool {
        *self == Self { limit: self.limit, ..Self::default() }
    }

    fn matches(&self, item: &Item, now_ms: i64) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let age = now_ms.saturating_sub(item.since_ms);
        is(&self.name, &item.name)
            && is(&self.at, &item.at)
            && self.error.as_deref().is_none_or(|part| item.error.contains(part))
            && self.older_than_s.is_none_or(|seconds| age >= i64::from(seconds) * 1_000)
    }

    /// Returns the matching items up to the limit, and whether there may be more.
    pub(super) async fn select(&self, queue: &dyn Queue, now_ms: i64) -> Result<(Vec<Item>, bool), QueueError> {
        let scan = if self.is_empty() { self.limit.saturating_add(1) } else { SCAN };
        let mut items = queue.list(scan).await?;
        let unseen = !self.is_empty() && items.len() >= SCAN as usize;
        items.retain(|item| self.matches(item, now_ms));
        let more = items.len() > self.limit as usize || unseen;
        items.truncate(self.limit as usize);
        Ok((items, more))
    }
}

impl Decision {
    /// Checks the rules that do not depend on the items.
    pub(super) fn check(&self, action: Action) -> Result<(), String> {
        match &self.which {
            Which::Ids(ids) if ids.is_empty() || ids.len() > MOST as usize => {
                return Err(format!("which.ids: must name 1 to {MOST} items"));
            }
            // An empty filter is more often a slip than a decision about everything.
            Which::Filter(filter) if filter.is_empty() => {
                return Err("which.filter: needs a condition; say \"all\" for all items".to_owned());
            }
            Which::Filter(filter) => filter.check()?,
            Which::Ids(_) | Which::All => {}
        }
        if action == Action::Resolve && self.note.trim().is_empty() {
            return Err("note: must say why the saga is resolved".to_owned());
        }
        if self.note.len() > 1_000 { Err("note: must have at most 1000 bytes".to_owned()) } else { Ok(()) }
    }

    pub(super) async fn carry_out(
        &self,
        queue: &dyn Queue,
        action: Action,
        now_ms: i64,
    ) -> Result<Outcome, QueueError> {
        let ids = |items: Vec<Item>| items.into_iter().map(|item| item.id).collect();
        let (ids, more): (Vec<String>, bool) = match &self.which {
            Which::Ids(ids) => (ids.clone(), false),
            Which::Filter(filter) => filter.select(queue, now_ms).await.map(|(items, more)| (ids(items), more))?,
            Which::All => Filter::default().select(queue, now_ms).await.map(|(items, more)| (ids(items), more))?,
        };
        let mut outcome = Outcome { more, ..Outcome::default() };
        for id in ids {
            match queue.act(&id, action, self.note.trim()).await {
                Ok(()) => outcome.done += 1,
                Err(error) => outcome.failed.push(Failed { id, error: error.to_string() }),
            }
        }
        Ok(outcome)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;

    /// Items with the ids 0 to n, of which "3" fails.
    #[derive(Debug, Default)]
    struct Fake {
        count: usize,
        seen: Mutex<Vec<String>>,
    }

    impl Queue for Fake {
        fn kind(&self) -> Kind {
            Kind::Sagas
        }

        fn list(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Item>, QueueError>> {
            let item = |n: usize| Item {
                id: n.to_string(),
                name: if n.is_multiple_of(2) { "even" } else { "odd" }.to_owned(),
                at: "step".to_owned(),
                order: String::new(),
                error: format!("error {n}"),
                since_ms: n as i64 * 1_000,
            };
            let items = (0..self.count).take(limit as usize).map(item).collect();
            async move { Ok(items) }.boxed()
        }

        fn act<'a>(&'a self, id: &'a str, _: Action, _: &'a str) -> BoxFuture<'a, Result<(), QueueError>> {
            let result = if id == "3" { Err("gone".into()) } else { Ok(()) };
            self.seen.lock().unwrap().push(id.to_owned());
            async move { result }.boxed()
        }
    }

    async fn decide(count: usize, which: Which) -> (Outcome, Vec<String>) {
        let queue = Fake { count, ..Fake::default() };
        let decision = Decision { which, note: String::new() };
        assert_eq!(decision.check(Action::Retry), Ok(()));
        let outcome = decision.carry_out(&queue, Action::Retry, 10_000).await.unwrap();
        let seen = queue.seen.into_inner().unwrap();
        (outcome, seen)
    }

    #[tokio::test]
    async fn a_decision_reaches_the_items_that_it_names() {
        let (outcome, seen) = decide(9, Which::Ids(vec!["7".into(), "3".into()])).await;
        assert_eq!((outcome.done, outcome.failed[0].id.as_str(), outcome.more), (1, "3", false));
        assert_eq!(seen, ["7", "3"]);
        let filter = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            Which::Filter(filter)
        };
        assert_eq!(decide(6, filter(|f| f.name = Some("even".into()))).await.1, ["0", "2", "4"]);
        assert_eq!(decide(6, filter(|f| f.error = Some("r 4".into()))).await.1, ["4"]);
        assert_eq!(decide(12, filter(|f| f.older_than_s = Some(8))).await.1, ["0", "1", "2"]);
        assert_eq!(decide(6, filter(|f| f.at = Some("other".into()))).await.1.len(), 0);
    }

    #[tokio::test]
    async fn one_call_is_bounded_and_says_that_there_is_more() {
        let (outcome, seen) = decide(101, Which::All).await;
        assert_eq!((outcome.done + outcome.failed.len() as u64, outcome.more, seen.len()), (100, true, 100));
        assert!(!decide(100, Which::All).await.0.more);
        let few = Filter { name: Some("odd".into()), limit: 2, ..Filter::default() };
        let (outcome, seen) = decide(9, Which::Filter(few)).await;
        assert_eq!((outcome.more, seen), (true, vec!["1".to_owned(), "3".to_owned()]));
    }

    #[test]
    fn a_decision_that_names_nothing_is_refused() {
        let check = |which, note: &str, action| Decision { which, note: note.to_owned() }.check(action);
        assert!(check(Which::Ids(vec![]), "", Action::Retry).unwrap_err().starts_with("which.ids: "));
        let empty = Which::Filter(Filter { limit: 7, ..Filter::default() });
        assert!(check(empty, "", Action::Retry).unwrap_err().starts_with("which.filter: "));
        let wide = Filter { name: Some("n".into()), limit: 1_001, ..Filter::default() };
        assert!(check(Which::Filter(wide), "", Action::Retry).unwrap_err().starts_with("limit: "));
        assert!(check(Which::All, " ", Action::Resolve).unwrap_err().starts_with("note: "));
        assert_eq!(check(Which::All, "paid in cash", Action::Resolve), Ok(()));
    }

    #[test]
    fn a_decision_reads_as_documented() {
        let parse = |text: &str| serde_json::from_str::<Decision>(text).map(|decision| decision.which);
        assert_eq!(parse(r#"{"which": "all"}"#).unwrap(), Which::All);
        assert_eq!(parse(r#"{"which": {"ids": ["a"]}}"#).unwrap(), Which::Ids(vec!["a".into()]));
        let filter = Filter { error: Some("timed out".into()), ..Filter::default() };
        assert_eq!(parse(r#"{"which": {"filter": {"error": "timed out"}}}"#).unwrap(), Which::Filter(filter));
        assert!(parse("{}").is_err() && parse(r#"{"which": {"filter": {"eror": "x"}}}"#).is_err());
    }
}
