//! Names that may not be features without a waiver: protected attributes and personal data. A list of names cannot find a
//! proxy under an innocent name; that is measured on the decisions, not guessed here.

/// Attributes on which a decision must not rest: EU Charter of Fundamental Rights, article 21, and 15 U.S.C. § 1691(a).
const PROTECTED: &[&str] = &[
    "age",
    "birthday",
    "birthdate",
    "birthyear",
    "citizenship",
    "civilstatus",
    "color",
    "dateofbirth",
    "dependents",
    "disability",
    "disabled",
    "dob",
    "ethnicgroup",
    "ethnicity",
    "familystatus",
    "gender",
    "geneticdata",
    "language",
    "maritalstatus",
    "married",
    "nationality",
    "nationalorigin",
    "partner",
    "politicalopinion",
    "pregnancy",
    "pregnant",
    "race",
    "religion",
    "senior",
    "seniorcitizen",
    "sex",
    "sexualorientation",
    "skincolor",
    "tradeunion",
];

/// Data that names or finds a person (GDPR, article 4(1)).
const PERSONAL: &[&str] = &[
    "accountid",
    "accountnumber",
    "address",
    "bankaccount",
    "cardnumber",
    "creditcard",
    "customerid",
    "customername",
    "deviceid",
    "email",
    "emailaddress",
    "familyname",
    "firstname",
    "fullname",
    "givenname",
    "iban",
    "imei",
    "ip",
    "ipaddress",
    "lastname",
    "mobile",
    "mobilenumber",
    "msisdn",
    "name",
    "nationalid",
    "passport",
    "phone",
    "phonenumber",
    "postcode",
    "socialsecuritynumber",
    "ssn",
    "street",
    "streetaddress",
    "surname",
    "taxid",
    "telephone",
    "userid",
    "username",
    "zip",
    "zipcode",
];

/// Why a feature of this name needs a waiver, if it does. Case, spaces and punctuation do not count, so `Senior_Citizen`
/// is found; a name that only contains such a word (`PhoneService`) is not.
pub fn why_protected(name: &str) -> Option<&'static str> {
    let folded: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if PROTECTED.contains(&folded.as_str()) {
        Some("a protected attribute")
    } else if PERSONAL.contains(&folded.as_str()) {
        Some("personal data")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::why_protected;

    #[test]
    fn finds_names_whatever_their_spelling() {
        for name in ["gender", "SeniorCitizen", "senior_citizen", "Date of Birth", "AGE", "customerID", "e-mail"] {
            assert!(why_protected(name).is_some(), "{name}");
        }
        for name in ["tenure", "PhoneService", "number_vmail_messages", "PaymentMethod", "total_day_minutes"] {
            assert!(why_protected(name).is_none(), "{name}");
        }
    }
}
