//! Scratch memory that the caller keeps from call to call.

use super::names::number;
use crate::error::{Error, Refusal};
use crate::workspace::{self, Memory, Size};

/// Scratch memory for one call at a time. [`Attention::reserve`](super::Attention::reserve) makes it large enough;
/// calls only use it.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Its length is 0: all of it is spare, and stays uninitialised.
    memory: Vec<u8>,
}

impl Workspace {
    /// None yet.
    pub const fn new() -> Workspace {
        Workspace { memory: Vec::new() }
    }

    /// Bytes that it has.
    pub fn bytes(&self) -> usize {
        self.memory.capacity()
    }

    /// Grows to `bytes`, if it has fewer; keeps what there was if there is not so much.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), Error> {
        self.memory.try_reserve_exact(bytes).map_err(|_| Error::Memory)
    }

    /// What a plan needs of it.
    pub(super) fn cut(&mut self, size: Size) -> Result<workspace::Workspace<'_>, Refusal> {
        let (has, needs) = (self.bytes(), size.borrowed_bytes()?);
        workspace::Workspace::on(Memory::of(self.memory.spare_capacity_mut()), size).map_err(|error| {
            let fact = Refusal::of("bytes of the workspace", number(has));
            fact.against(error, "fewer than the call needs (Attention::reserve)", number(needs))
        })
    }
}
