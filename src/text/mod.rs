//! Text as the tree speaks it: parsing and printing, used by every room. Knows nothing of Blixard.

pub mod refusal;

pub use refusal::{Code, Refusal};
