//! A manifest: the model card of a bundle, and the schema that it makes.

use mainstay::domain::bundle::card::Card;
use mainstay::domain::bundle::feature::{Feature, Kind, Missing};
use mainstay::domain::record::Value;

pub(super) fn run(input: &[u8]) {
    let Ok(card) = serde_json::from_slice::<Card>(input) else { return };
    let written = serde_json::to_string(&card).expect("a card can be written");
    // A number may lose its last bit on its first way through JSON, and none after that.
    let Ok(again) = serde_json::from_str::<Card>(&written) else {
        // JSON has no infinity, which a number beyond float32 is read as.
        assert!(card.check().is_err(), "what cannot be written and read again is refused");
        return;
    };
    assert_eq!(serde_json::to_string(&again).expect("JSON").len(), written.len(), "a card is written as it was read");
    let schema = match (card.check(), again.check()) {
        (Ok(schema), Ok(_)) => schema,
        (Err(problems), Err(_)) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.is_empty()));
            return;
        }
        (one, two) => panic!("written anew it is judged otherwise: {:?}, {:?}", one.err(), two.err()),
    };
    assert_eq!(schema.columns(), card.graph.columns, "the card says how many columns there are");
    assert_eq!(schema.spans().map(|span| span.len()).sum::<usize>(), schema.columns());
    let mut row = vec![0.0; schema.columns()];
    // Nothing at all: each feature is there by its rule for missing values, or told of by its name.
    let refused = card.features.iter().filter(|feature| feature.missing == Missing::Refuse).count();
    match schema.vectorize::<&str>(&[], &mut row) {
        Ok(()) => assert_eq!(refused, 0, "a feature that must be there may be missing"),
        Err(violations) => {
            assert_eq!(violations.len(), refused.min(100));
            assert!(violations.iter().all(|violation| violation.pointer.starts_with("/features/")));
        }
    }
    // What the dictionary allows, the schema takes.
    let legal: Vec<(&str, Value)> =
        card.features.iter().map(|feature| (feature.name.as_str(), legal(feature))).collect();
    if let Err(violations) = schema.vectorize(&legal, &mut row) {
        panic!("legal values are refused: {violations:?}");
    }
}

/// A value that the dictionary allows.
fn legal(feature: &Feature) -> Value<'_> {
    let category = || feature.categories.iter().flatten().next().map(|(name, _)| Value::Text(name.as_str().into()));
    match feature.kind {
        Kind::Number => Value::Number(feature.range.map_or(0.0, |range| range.min)),
        Kind::Integer => Value::Number(feature.range.map_or(0.0, |range| range.max.floor())),
        Kind::Category => category().unwrap_or(Value::Null),
    }
}
