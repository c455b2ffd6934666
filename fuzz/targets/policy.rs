//! A policy document: TOML that somebody wrote, to be applied to everybody's customers.

use mainstay::domain::bundle::card::Card;
use mainstay::domain::policy::Policy;
use mainstay::domain::policy::assessment::{Assessment, Offer};
use mainstay::domain::record::{Record, Value};
use mainstay::domain::score::Score;
use mainstay::engine::parse_policy;

/// Sentences that are told of one document at most, as the reader bounds itself.
const PROBLEMS_MAX: usize = 1_000;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let policy = match parse_policy(text) {
        Ok(policy) => policy,
        Err(problems) => {
            assert!(!problems.is_empty() && problems.len() <= PROBLEMS_MAX, "{} problems", problems.len());
            assert!(problems.iter().all(|problem| !problem.trim().is_empty()), "a problem without a word");
            return;
        }
    };
    assert_eq!(policy.document(), text);
    assert_eq!(parse_policy(text).as_ref(), Ok(&policy), "the same document is the same policy");
    covers_every_score(&policy);
    // Written anew by another writer it has other bytes, hence another version, and its interventions are in the order of their names:
    // that may decide between two that are worth the same, and nothing else.
    let table: toml::Table = text.parse().expect("what was read is TOML");
    let other = toml::to_string(&table).expect("a table can be written");
    let other =
        parse_policy(&other).unwrap_or_else(|problems| panic!("written anew it is refused: {problems:?}\n{other}"));
    assert_eq!(other.interventions().len(), policy.interventions().len());
    assert_eq!((other.budget(), other.currency()), (policy.budget(), policy.currency()));
    let tiers =
        |of: &Policy| of.tiers().iter().map(|tier| (tier.name.clone(), tier.band, tier.explain)).collect::<Vec<_>>();
    assert_eq!(tiers(&other), tiers(&policy));
    decides(&policy, &other);
}

/// Each score is in exactly one tier, in every segment.
fn covers_every_score(policy: &Policy) {
    let segments = policy.segments().iter().map(|segment| &segment.bands).filter(|bands| !bands.is_empty());
    let bands = segments.map(|bands| bands.iter().collect::<Vec<_>>());
    for bands in bands.chain([policy.tiers().iter().map(|tier| &tier.band).collect()]) {
        for score in scores() {
            assert_eq!(bands.iter().filter(|band| band.contains(score.value())).count(), 1, "{score:?} in {bands:?}");
        }
    }
}

/// Both offer the same to whoever comes, and choose among what they offer.
fn decides(policy: &Policy, other: &Policy) {
    let card: Card =
        serde_json::from_str(include_str!("../../models/telco-churn/1.2.0/manifest.json")).expect("a card");
    let (binding, again) = match (policy.bind(&card.features), other.bind(&card.features)) {
        (Ok(binding), Ok(again)) => (binding, again),
        (Err(problems), Err(_)) => return assert!(!problems.is_empty()),
        (one, two) => panic!("one fits, the other does not: {:?} {:?}", one.err(), two.err()),
    };
    let features = [("tenure", 2.0), ("MonthlyCharges", 95.5), ("TotalCharges", 191.0)];
    let record = Record {
        customer_id: "c".into(),
        features: features.map(|(name, value)| (name.into(), Value::Number(value))).into(),
        context: Vec::new(),
        reasons: 0,
        counterfactuals: 0,
    };
    let (Ok(values), Ok(own)) = (binding.read(&record), again.read(&record)) else { return };
    for score in scores() {
        let (assessment, choice) = policy.decide(score, &values);
        assert_eq!(offered(policy, &assessment), offered(other, &other.decide(score, &own).0));
        assert!(assessment.tier < policy.tiers().len() && choice.intervention < policy.interventions().len());
        assert!(
            assessment.offers.iter().any(|offer| offer.intervention == choice.intervention),
            "what is chosen was offered"
        );
        assert!(policy.rules(assessment.tier, &assessment.trace, &choice).iter().all(|rule| !rule.is_empty()));
    }
}

/// The tier, and each offer by its action.
fn offered(policy: &Policy, assessment: &Assessment) -> (usize, Vec<(String, String)>) {
    let of = |offer: &Offer| {
        (policy.interventions()[offer.intervention].action.clone(), format!("{:?} {}", offer.cost, offer.gain))
    };
    let mut offers: Vec<_> = assessment.offers.iter().map(of).collect();
    offers.sort();
    (assessment.tier, offers)
}

fn scores() -> impl Iterator<Item = Score> {
    let round = (0..=20_u32).map(|part| f64::from(part) / 20.0);
    let beside = round.clone().flat_map(|value| [value, value.next_up(), value.next_down()]);
    beside.filter_map(Score::new)
}
