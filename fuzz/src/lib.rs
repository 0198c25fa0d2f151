//! What the fuzz targets share; see `docs/fuzzing.md`.

pub mod append;
pub mod easy;
pub mod general;
pub mod input;
pub mod layout;
pub mod memory;
pub mod pointers;

#[path = "../../tests/common/mod.rs"]
pub mod common;
#[path = "../../tests/common/definition.rs"]
pub mod definition;
#[path = "../../tests/common/description.rs"]
pub mod description;
#[path = "../../tests/common/fixed_reference.rs"]
pub mod fixed_reference;
#[path = "../../tests/common/pairs.rs"]
pub mod pairs;
