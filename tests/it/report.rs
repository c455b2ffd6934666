//! The monthly review: the command against the real server, and the file that it writes.

use serde_json::{Value, json};

use crate::insight::{history, start};
use crate::service::Service;

/// Runs `mainstay report`: exit code, and all that it says.
fn report(service: &Service, directory: &std::path::Path, arguments: &[&str]) -> (i32, String) {
    let admin = format!("admin.listen={}", service.admin);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.current_dir(directory).arg("report").args(arguments).args(["--set", &admin]);
    let output = command.output().expect("a run");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.code().expect("an exit code"), text)
}

/// As the report writes a share.
fn percent(share: &Value) -> String {
    format!("{:.1}%", share.as_f64().expect("a share") * 100.0)
}

#[tokio::test]
async fn the_monthly_review_is_one_file_with_the_figures_of_the_service() {
    let (service, directory) = start(&["insight.conversion_floor=0.9"]);
    history(&service).await;
    // A name and a hypothesis that would be markup, if they could.
    let hypothesis = "calls <b>keep</b> more & \"better\"";
    let arms = json!([{"name": "call", "share": 0.1, "intervention": "account_manager_call"}, {"name": "control", "share": 0.1}]);
    let experiment = json!({"name": "calls", "hypothesis": hypothesis, "owner": "growth", "arms": arms, "to": "2099-01-01T00:00:00Z"});
    let created = service.post_admin("/v1/experiments", &[], &json!({"experiment": experiment, "by": "someone"})).await;
    assert_eq!(created.status, 200, "{}", created.text);

    let (code, said) = report(&service, directory.path(), &[]);
    assert_eq!(code, 0, "{said}");
    let name = said.trim();
    assert!(name.starts_with("mainstay-report-20") && name.ends_with(".html"), "{said}");
    let page = std::fs::read_to_string(directory.path().join(name)).expect("a file");

    // It needs nothing else and runs nothing.
    for outside in ["<script", "http://", "https://", "src=", "url(", "<link", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.contains("calls &lt;b&gt;keep&lt;/b&gt; more &amp; &quot;better&quot;"), "escaped");

    // The figures are those of the service, and so is what is to be made of them.
    let kpis = service.get_admin("/v1/insight/kpis?window=30d").await.json();
    let kpi = |name: &str| {
        let tree = kpis["overall"]["tree"].as_array().expect("a tree");
        tree.iter().find(|kpi| kpi["name"] == name).expect("a figure").clone()
    };
    for name in ["churn_rate_treated", "churn_rate_held_out", "conversion_rate"] {
        let found = &kpi(name)["estimate"];
        let [value, low, high] = ["value", "low", "high"].map(|end| percent(&found[end]));
        assert!(page.contains(&format!(">{value} ({low} to {high})<")), "{name}: {value} ({low} to {high})");
    }
    assert_eq!(
        (&kpi("conversion_rate")["target"], &kpi("conversion_rate")["standing"]),
        (&json!(0.9), &json!("missed"))
    );
    assert!(page.contains("The target is at least 90.0%: it is missed."));
    let quality = service.get_admin("/v1/insight/quality?window=30d").await.json();
    let auc = quality["overall"]["auc"]["value"].as_f64().expect("an area");
    assert!(page.contains(&format!(">{auc:.3} (")), "{auc}");
    assert!(page.contains("held out of interventions") && page.contains("Offers by sex"));
    let drift = service.get_admin("/v1/insight/drift?window=30d").await.json();
    let worst = drift["versions"][0]["features"][0]["feature"].as_str().expect("a feature");
    assert!(page.contains(&format!(">{worst}<")), "{worst}");

    // What is wrong is said, and nothing is written.
    let (code, said) = report(&service, directory.path(), &["--model", "telco-chrn", "--out", "none.html"]);
    assert!(code == 1 && said.contains("telco-churn"), "{code} {said}");
    assert!(!directory.path().join("none.html").exists());
    let (code, said) = report(&service, directory.path(), &["--model", "telco-churn", "--out", "no/place.html"]);
    assert!(code == 69 && said.contains("cannot write no/place.html"), "{code} {said}");
}

#[tokio::test]
async fn a_review_of_nothing_claims_nothing() {
    let service = Service::start(&[]);
    let directory = tempfile::tempdir().expect("a directory");
    let (code, said) = report(&service, directory.path(), &["--model", "telco-churn", "--out", "review.html"]);
    assert_eq!((code, said.as_str()), (0, "review.html\n"));
    let page = std::fs::read_to_string(directory.path().join("review.html")).expect("a file");
    assert_eq!(page.matches("Not known yet</span>").count(), 4, "each of the four tiles");
    assert!(page.matches("not enough customers yet").count() > 10);
}
