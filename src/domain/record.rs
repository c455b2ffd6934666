//! What a caller says about a customer: a tree of plain values, borrowed from the request where it can be.
//! Reading it from JSON is the business of `http`; what the values mean, of `schema`.

use std::borrow::Cow;

/// A value as it came in: the JSON data model, with the order and the repetition of keys kept, because both matter
/// to a strict reader.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`: the value is known to be missing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number. Finite: neither JSON nor our golden rows can write another.
    Number(f64),
    /// A string, borrowed unless it had escapes.
    Text(Cow<'a, str>),
    /// An array.
    List(Vec<Value<'a>>),
    /// An object: entries in the order written, repeated keys included.
    Map(Entries<'a>),
}

/// The entries of an object in the order written, repeated keys included.
pub type Entries<'a> = Vec<(Cow<'a, str>, Value<'a>)>;

impl Value<'_> {
    /// The kind of this value in words, for messages. Never the value itself: it may be personal.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "an array",
            Value::Map(_) => "an object",
        }
    }
}

/// One customer to decide on.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<'a> {
    /// The caller's own name for the customer, 1 to 128 characters. Personal: it never reaches a log or a metric.
    pub customer_id: Cow<'a, str>,
    /// Feature values by the names of the model's feature dictionary.
    pub features: Entries<'a>,
    /// What the policy may look at and the model must not.
    pub context: Entries<'a>,
    /// How many reasons the caller wants to see; 0 for none.
    pub reasons: usize,
    /// How many counterfactuals the caller wants to see; 0 for none.
    pub counterfactuals: usize,
}
