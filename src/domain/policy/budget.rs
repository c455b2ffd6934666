//! A budget: how much the interventions of a model may cost in a day, a week or a month of the UTC calendar. Who keeps the account is not
//! known here.

use std::ops::Range;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::Period;
use crate::domain::money::Money;

/// What may be spent in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How much, 0 or more, in the policy's currency.
    pub amount: Money,
    /// In which time.
    pub period: Period,
}

impl Period {
    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
        }
    }

    /// The period of the UTC calendar that `at_ms` (milliseconds since 1970) is in, its end excluded: days from midnight, weeks from
    /// Monday, months from the first. What no calendar knows is one period by itself.
    pub fn around(self, at_ms: u64) -> Range<u64> {
        let bounds = || {
            let at = Timestamp::from_millisecond(i64::try_from(at_ms).ok()?).ok()?;
            let day = at.to_zoned(TimeZone::UTC).date();
            let (from, span) = match self {
                Period::Day => (day, 1.day()),
                Period::Week => {
                    (day.checked_sub(i64::from(day.weekday().since(Weekday::Monday)).days()).ok()?, 1.week())
                }
                Period::Month => (day.first_of_month(), 1.month()),
            };
            let ms = |day: jiff::civil::Date| {
                Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond().max(0) as u64)
            };
            Some(ms(from)?..ms(from.checked_add(span).ok()?)?)
        };
        bounds().unwrap_or(0..u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_those_of_the_calendar() {
        let ms = |text: &str| text.parse::<Timestamp>().expect("a time").as_millisecond() as u64;
        for (period, at, from, to) in [
            (Period::Month, "2028-02-29T23:59:59.999Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Month, "2026-12-31T10:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Period::Month, "2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Period::Week, "2026-11-22T23:59:59Z", "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z"),
            (Period::Week, "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Period::Day, "2026-11-22T12:00:00Z", "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"),
        ] {
            assert_eq!(period.around(ms(at)), ms(from)..ms(to), "{at}");
        }
        assert_eq!(Period::Week.around(0), 0..4 * 86_400_000, "1970 began on a Thursday");
        assert_eq!(Period::Day.around(u64::MAX), 0..u64::MAX);
    }
}
