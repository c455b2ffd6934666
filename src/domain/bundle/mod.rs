//! What a bundle says: its card, the feature dictionary and how a record becomes a row of it, uplift, baseline and golden rows. Reading
//! files is `model::bundle`'s.

pub mod baseline;
pub mod bins;
pub mod card;
pub mod feature;
pub mod golden;
pub mod protected;
pub mod schema;
pub mod uplift;
