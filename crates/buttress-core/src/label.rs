use crate::{Reason, Rejection, rate_limit::LiveQuota};
use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, OnceLock},
};

/// The policy that made a rejection: its kind, and its name if it has one. Cheap to clone.
///
/// ```
/// use buttress_core::Label;
///
/// const ANONYMOUS: Label = Label::new("token bucket");
/// let named = Label::named("token bucket", "uploads".into());
/// assert_eq!((named.policy(), named.name()), ("token bucket", Some("uploads")));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Label(LabelRepr);

#[derive(Clone, Debug, Eq, PartialEq)]
enum LabelRepr {
    Plain(&'static str),
    Named(Arc<Named>),
}

/// On cache lines of its own: the reference count of its `Arc` is incremented by every rejection.
#[derive(Debug, Eq, PartialEq)]
#[repr(align(128))]
struct Named {
    policy: &'static str,
    name: Option<Name>,
    quota: Option<LiveQuota>,
}

impl Label {
    /// Creates the label of a policy without a name. `policy` is the kind of policy in words, such
    /// as `"circuit breaker"`.
    pub const fn new(policy: &'static str) -> Self {
        Self(LabelRepr::Plain(policy))
    }

    /// Creates the label of a policy with a name.
    pub fn named(policy: &'static str, name: Name) -> Self {
        Self(LabelRepr::Named(Arc::new(Named { policy, name: Some(name), quota: None })))
    }

    /// Adds the quota of the policy, which protocols can tell callers. Allocates.
    pub fn with_quota(self, quota: LiveQuota) -> Self {
        let (policy, name) = (self.policy(), self.0.name().cloned());
        Self(LabelRepr::Named(Arc::new(Named { policy, name, quota: Some(quota) })))
    }

    /// Returns the kind of policy, in words.
    pub fn policy(&self) -> &'static str {
        match &self.0 {
            LabelRepr::Plain(policy) => policy,
            LabelRepr::Named(named) => named.policy,
        }
    }

    /// Returns the name of the policy, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.0.name().map(|name| &**name)
    }

    /// Returns the quota of the policy, if it has one.
    pub fn quota(&self) -> Option<&LiveQuota> {
        match &self.0 {
            LabelRepr::Plain(_) => None,
            LabelRepr::Named(named) => named.quota.as_ref(),
        }
    }
}

impl LabelRepr {
    fn name(&self) -> Option<&Name> {
        match self {
            Self::Plain(_) => None,
            Self::Named(named) => named.name.as_ref(),
        }
    }
}

/// The label of a policy that rejects on many threads: one copy per shard, so that rejections do
/// not contend for its reference count. The first rejection makes the copies.
#[derive(Debug)]
pub(crate) struct Labels {
    policy: &'static str,
    name: Option<Name>,
    quota: Option<LiveQuota>,
    shards: usize,
    copies: OnceLock<Box<[Label]>>,
}

impl Labels {
    pub(crate) fn new(policy: &'static str, name: Option<&Name>, shards: usize) -> Self {
        Self { policy, name: name.cloned(), quota: None, shards: shards.max(1), copies: OnceLock::new() }
    }

    pub(crate) fn with_quota(self, quota: LiveQuota) -> Self {
        Self { quota: Some(quota), ..self }
    }

    pub(crate) fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    pub(crate) fn reject(&self, reason: &'static Reason) -> Rejection {
        Rejection::labelled(self.get(), reason)
    }

    /// Returns the label if the policy has a name.
    #[inline]
    pub(crate) fn named(&self) -> Option<Label> {
        self.name.as_ref().map(|_| self.get())
    }

    fn get(&self) -> Label {
        let copies = self.copies.get_or_init(|| (0..self.shards).map(|_| self.label()).collect());
        copies[crate::shard::thread_index() % copies.len()].clone()
    }

    fn label(&self) -> Label {
        let label = self.name.as_ref().map_or(Label::new(self.policy), |name| Label::named(self.policy, name.clone()));
        match &self.quota {
            Some(quota) => label.with_quota(quota.clone()),
            None => label,
        }
    }
}

/// The name of a policy. Cloning a name made from a literal does not touch a reference count.
///
/// ```
/// use buttress_core::Name;
///
/// let literal = Name::from("payments");
/// let owned = Name::from(format!("shard-{}", 7));
/// assert_eq!((&*literal, owned.to_string()), ("payments", "shard-7".to_owned()));
/// assert_eq!(literal, Name::from(String::from("payments")), "names are equal by their text");
/// ```
#[derive(Clone)]
pub struct Name(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(Repr::Shared(name.into()))
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self(Repr::Shared(name))
    }
}

impl From<Cow<'static, str>> for Name {
    fn from(name: Cow<'static, str>) -> Self {
        match name {
            Cow::Borrowed(name) => name.into(),
            Cow::Owned(name) => name.into(),
        }
    }
}
