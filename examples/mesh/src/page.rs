//! Pages of a list: `limit`, `after` and `next`.
//!
//! A page begins after a cursor, which is the `next` of the page before, and not at a number: rows
//! that are added or removed meanwhile neither repeat nor skip others, and the database does not
//! read what it does not return.

use serde::Deserialize;

use crate::problem::Problem;

/// Which part of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    limit: u32,
    after: Option<String>,
}

/// A limit that is 0 or too large.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be between 1 and {}", Page::LARGEST)]
pub struct BadLimit;

/// The query parameters `limit` and `after`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    after: Option<String>,
}

impl Page {
    /// Largest page, and the default.
    pub const LARGEST: u32 = 100;

    /// A page of at most `limit` rows, after the one with the cursor `after`.
    pub fn new(limit: u32, after: Option<String>) -> Result<Self, BadLimit> {
        if (1..=Self::LARGEST).contains(&limit) { Ok(Self { limit, after }) } else { Err(BadLimit) }
    }

    /// The largest page, after the row with the cursor `after`.
    pub fn largest(after: Option<String>) -> Self {
        Self { limit: Self::LARGEST, after }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Number of rows to read: one more than the page has, to know whether there is another page.
    pub fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Removes the additional row. Returns the page, and the cursor of the next one.
    pub fn cut<T>(&self, mut rows: Vec<T>, cursor: impl FnOnce(&T) -> String) -> (Vec<T>, Option<String>) {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(cursor);
        (rows, next)
    }
}

impl PageQuery {
    /// Parses the parameters; `check` parses the cursor.
    pub fn parse<E: std::fmt::Display>(self, check: impl FnOnce(&str) -> Result<(), E>) -> Result<Page, Problem> {
        let wrong = |field: &str, rule: &dyn std::fmt::Display| {
            Problem::from_status(http::StatusCode::BAD_REQUEST, format!("the query parameter {field} {rule}"))
        };
        if let Some(after) = &self.after {
            check(after).map_err(|rule| wrong("after", &rule))?;
        }
        let limit = match &self.limit {
            None => Page::LARGEST,
            Some(limit) => limit.parse().map_err(|_| wrong("limit", &BadLimit))?,
        };
        Page::new(limit, self.after).map_err(|rule| wrong("limit", &rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_at_most_its_limit_and_tells_where_the_next_one_begins() {
        let page = Page::new(2, None).unwrap();
        let cut = |rows: &[i32]| page.cut(rows.to_vec(), i32::to_string);
        assert_eq!(page.rows(), 3);
        assert_eq!(cut(&[1, 2, 3]), (vec![1, 2], Some("2".to_owned())));
        assert_eq!(cut(&[1, 2]), (vec![1, 2], None));
        assert_eq!(cut(&[]), (vec![], None));
    }

    #[test]
    fn a_limit_has_bounds_that_are_allowed_themselves() {
        let query = |limit: Option<&str>, after: Option<&str>| {
            let own = |text: Option<&str>| text.map(str::to_owned);
            let check = |after: &str| if after == "bad" { Err(BadLimit) } else { Ok(()) };
            PageQuery { limit: own(limit), after: own(after) }.parse(check).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(query(None, None), Ok(Page { limit: 100, after: None }));
        assert_eq!(query(Some("1"), Some("tea")), Ok(Page { limit: 1, after: Some("tea".to_owned()) }));
        assert_eq!(query(Some("100"), None), Ok(Page { limit: 100, after: None }));
        for wrong in ["0", "101", "-1", "all", "", "99999999999"] {
            assert_eq!(query(Some(wrong), None), Err(400), "{wrong:?}");
        }
        assert_eq!(query(None, Some("bad")), Err(400));
    }
}
