//! Answers of the service as tables for people: slots with their rollout, and how two ways to decide differ.

use serde_json::Value;

/// Cells of a table.
pub(super) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Rows as columns that stand under each other.
pub(super) fn aligned(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The slots of one model, with its rollout.
pub(super) fn table(slots: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut rows = vec![row(&["slot", "state", "role", "version", "share", "since", "memory", "requests", "p99"])];
    for slot in slots["slots"].as_array().into_iter().flatten() {
        let mib =
            slot["memory_bytes"].as_f64().map_or("-".to_owned(), |bytes| format!("{:.1} MiB", bytes / 1_048_576.0));
        rows.push(vec![
            text(&slot["slot"]),
            text(&slot["state"]),
            text(&slot["role"]),
            text(&slot["version"]),
            format!("{}%", slot["share"].as_f64().unwrap_or(0.0) * 100.0),
            text(&slot["since"]),
            mib,
            slot["requests"].as_u64().map_or("-".to_owned(), |requests| requests.to_string()),
            slot["row_p99_us"].as_f64().map_or("-".to_owned(), |us| format!("{us:.1} us")),
        ]);
    }
    let policy = &slots["policy"];
    let mut out = format!(
        "{} (policy {} {})\n{}",
        text(&slots["model"]),
        text(&policy["name"]),
        text(&policy["version"]),
        aligned(rows)
    );
    let guardrails = |readings: &Value| {
        let readings = readings.as_array().into_iter().flatten();
        aligned(
            readings
                .map(|r| row(&["  ", &text(&r["guardrail"]), &text(&r["verdict"]), &text(&r["figures"])]))
                .collect(),
        )
    };
    if let Some(rollout) = slots["rollout"].as_object() {
        let steps = rollout["steps"].as_array().map_or(0, Vec::len);
        out += &format!(
            "rollout {} {}: {} step {} of {steps} since {}, verdict {}\n{}",
            text(&rollout["id"]),
            text(&rollout["state"]),
            text(&rollout["exposure"]),
            rollout["step"],
            text(&rollout["step_since"]),
            text(&rollout["verdict"]),
            guardrails(&rollout["guardrails"])
        );
    } else if let Some(ended) = slots["last_rollout"].as_object() {
        out += &format!(
            "last rollout: {} {} at step {}, {}\n{}",
            text(&ended["version"]),
            text(&ended["end"]).replace('_', " "),
            ended["step"],
            text(&ended["at"]),
            guardrails(&ended["guardrails"])
        );
    }
    let legal: Vec<String> = slots["legal"].as_array().into_iter().flatten().map(text).collect();
    out += &format!("legal now: {}\n", legal.join(", "));
    let missing: Vec<String> = slots["approvals_missing"].as_array().into_iter().flatten().map(text).collect();
    if !missing.is_empty() {
        out += &format!("a promotion needs the approval of: {}\n", missing.join(", "));
    }
    out
}

/// How two ways to decide differ.
pub(super) fn comparison(found: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|name| name.as_str().unwrap_or("-").to_owned()).collect()
    };
    let expected = match (&found["expected_value_after"], &found["expected_value_before"]) {
        (Value::Null, _) => String::new(),
        (after, Value::Null) => format!("they are expected to be worth {:.2}\n", number(after)),
        (after, before) => {
            format!("they are expected to be worth {:.2} instead of {:.2}\n", number(after), number(before))
        }
    };
    let difference = &found["score_difference"];
    let mut rows = vec![[vec!["before \\ after".to_owned()], names(&found["tiers_after"])].concat()];
    for (tier, counts) in
        names(&found["tiers_before"]).into_iter().zip(found["migration"].as_array().into_iter().flatten())
    {
        rows.push(std::iter::once(tier).chain(counts.as_array().into_iter().flatten().map(Value::to_string)).collect());
    }
    let quantiles = difference["quantiles"].as_array().into_iter().flatten();
    let quantiles: Vec<String> =
        quantiles.map(|pair| format!("{} {:+.4}", pair[0].as_str().unwrap_or_default(), number(&pair[1]))).collect();
    format!(
        "{} decisions on record ({} could not be made again)\nscores: mean {:+.4}, mean size {:.4}, greatest {:.4}; {}\n{}{:.2} % change tier; interventions cost {:.2} instead of {:.2} {}\n",
        found["rows"],
        found["skipped"],
        number(&difference["mean"]),
        number(&difference["mean_size"]),
        number(&difference["size_max"]),
        quantiles.join(", "),
        aligned(rows),
        number(&found["moved_share"]) * 100.0,
        number(&found["cost_after"]),
        number(&found["cost_before"]),
        found["currency"].as_str().unwrap_or_default()
    ) + &expected
}
