use std::fmt;
use std::str::FromStr;

/// The id of a saga: the name of its definition, and an id that is unique among the sagas of that
/// definition. So `order` and `return` may both have a saga `order-7`.
///
/// [`Starter::id`](super::Starter::id) creates it from the id given to
/// [`start`](super::Starter::start). As text it is `definition:id`.
///
/// ```
/// use buttress_durable::saga::SagaId;
///
/// let id = SagaId::new("order", "order-7");
/// assert_eq!(id.to_string(), "order:order-7");
/// assert_eq!("order:order-7".parse(), Ok(id));
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SagaId {
    definition: String,
    id: String,
}

/// A text is not the id of a saga: it has no `:`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the id of a saga must be of the form definition:id")]
pub struct InvalidSagaId;

impl SagaId {
    /// Creates an id from the name of the definition and the id within it.
    pub fn new(definition: impl Into<String>, id: impl Into<String>) -> Self {
        Self { definition: definition.into(), id: id.into() }
    }

    /// Returns the name of the definition.
    pub fn definition(&self) -> &str {
        &self.definition
    }

    /// Returns the id within the definition.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.definition, self.id)
    }
}

impl FromStr for SagaId {
    type Err = InvalidSagaId;

    fn from_str(text: &str) -> Result<Self, InvalidSagaId> {
        // The name of a definition has no colon; an id may have.
        text.split_once(':').map(|(definition, id)| Self::new(definition, id)).ok_or(InvalidSagaId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_with_colons_is_read_as_it_was_written() {
        let id = SagaId::new("order", "shop:7");
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_eq!((id.definition(), id.id()), ("order", "shop:7"));
        assert_eq!("order-7".parse::<SagaId>(), Err(InvalidSagaId));
    }
}
