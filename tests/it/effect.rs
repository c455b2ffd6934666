//! What came of a canary, by posted outcomes, feeds back into it: through the real server, with a ledger and the thread that measures.

use serde_json::{Value, json};

use crate::service::{Service, until};
use crate::slots::{customers, done, models, slots, stage, start};

const CUSTOMERS: usize = 600;
/// Nothing else is to roll back, and measures come at once.
const SETTINGS: [&str; 3] =
    ["insight.refresh_secs=1", "rollouts.limits.latency_floor_us=100000", "rollouts.limits.tier_shift_max=0.5"];

/// A canary of half of the customers, who come once: how many of each arm, the champion's first, were then said to have left, of which
/// `left` of a hundred.
async fn canary(service: &Service, left: [usize; 2]) -> [usize; 2] {
    stage(service, "9.0.0-good").await;
    let step = |share: f64| json!({"exposure": "canary", "share": share, "bake_secs": 3600});
    done(service, "start", json!({"steps": [step(0.5), step(0.6)]})).await;
    let mut rows = customers(CUSTOMERS);
    for (at, row) in rows.as_array_mut().expect("rows").iter_mut().enumerate() {
        let group = ["f", "m"][at % 2];
        row["context"] = json!({"audit": {"sex": group}});
    }
    let answer = service.post("/v1/score/batch", &rows).await.json();
    let (mut seen, mut gone) = ([0; 2], [0; 2]);
    let mut outcomes = Vec::new();
    for decision in answer["results"].as_array().expect("results") {
        let arm = usize::from(decision["model"]["arm"] == "challenger");
        let churned = seen[arm] * 37 % 100 < left[arm];
        (seen[arm], gone[arm]) = (seen[arm] + 1, gone[arm] + usize::from(churned));
        outcomes.push(json!({
            "decision_id": decision["decision_id"], "occurred_at": decision["decided_at"], "churned": churned,
        }));
    }
    // Outcomes come late: the rollout has gone on meanwhile.
    done(service, "advance", json!({})).await;
    for outcomes in outcomes.chunks(300) {
        let answer = service.post("/v1/outcomes", &json!(outcomes)).await.json();
        let results = answer["results"].as_array().expect("results");
        assert!(results.iter().all(|result| result["recorded"] == true), "{results:?}");
    }
    gone
}

fn reading<'a>(guardrails: &'a Value, name: &str) -> Option<&'a Value> {
    guardrails.as_array()?.iter().find(|reading| reading["guardrail"] == name)
}

#[tokio::test]
async fn a_challenger_whose_customers_leave_more_often_is_rolled_back() {
    let models = models();
    let service = start(models.path(), None, "1.2.0", &SETTINGS);
    let gone = canary(&service, [20, 60]).await;
    until(async || slots(&service).await["rollout"].is_null()).await;
    let last = slots(&service).await["last_rollout"].clone();
    let churn = reading(&last["guardrails"], "churn").expect("a reading");
    assert_eq!((&last["end"], &churn["verdict"]), (&json!("rolled_back"), &json!("fail")), "{last:#}");
    let figures = churn["figures"].as_str().expect("a sentence");
    assert!(!figures.is_empty() && gone[1] > gone[0], "{figures}");
    // A rollback is in force before it is on record.
    until(async || {
        let history = service.get_admin("/v1/slots/telco-churn/history").await.json();
        let newest = &history["moves"][0];
        newest["by"] == "mainstay" && newest["result"].as_str().is_some_and(|result| result.contains(": churn: "))
    })
    .await;
}

#[tokio::test]
async fn a_challenger_whose_customers_leave_as_often_is_not_and_waits_only_where_it_is_told_to() {
    for (settings, verdict) in [(&[][..], "pass"), (&["rollouts.limits.outcomes_min=400"], "hold")] {
        let models = models();
        let service = start(models.path(), None, "1.2.0", &[&SETTINGS, settings].concat());
        let gone = canary(&service, [30, 30]).await;
        let expected =
            format!("{} of {} customers left, {} of {} of the champion's", gone[1], gone[1], gone[0], gone[0]);
        let is_known = |churn: &Value| churn["figures"].as_str().is_some_and(|figures| figures.starts_with(&expected));
        until(async || reading(&slots(&service).await["rollout"]["guardrails"], "churn").is_some_and(is_known)).await;
        let guardrails = slots(&service).await["rollout"]["guardrails"].clone();
        assert_eq!(reading(&guardrails, "churn").expect("a reading")["verdict"], verdict, "{guardrails:#}");
        let fairness = &reading(&guardrails, "fairness").expect("a reading")["verdict"];
        assert!(fairness == "pass" || fairness == "hold", "{guardrails:#}");
        let metrics = service.get_admin("/metrics").await.text;
        assert!(metrics.lines().any(|line| line.contains("rollout_guardrail") && line.contains("\"churn\"")));
    }
}
