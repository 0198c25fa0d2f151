//! Scratch memory that the caller keeps from call to call.

use crate::error::names::number;
use crate::error::{Error, Refusal};
use crate::workspace::Memory;

/// Scratch memory for one call at a time. [`Attention::reserve`](super::Attention::reserve) makes
/// it large enough; calls only use it.
#[derive(Debug, Default)]
pub struct Workspace {
    /// All of it is spare capacity: the length is 0, and the memory stays uninitialised.
    memory: Vec<u8>,
}

impl Workspace {
    /// An empty workspace.
    pub const fn new() -> Workspace {
        Workspace { memory: Vec::new() }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.capacity()
    }

    /// Grows to `bytes` if it has fewer, such as those that
    /// [`Attention::workspace`](super::Attention::workspace) says.
    ///
    /// # Errors
    /// [`Error::Memory`]: allocation failed, and it is as it was.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        Ok(self.memory.try_reserve_exact(bytes).map_err(|_| Error::Memory)?)
    }

    /// Refuses a call that needs more.
    pub(super) fn check(&self, needs: usize) -> Result<(), Refusal> {
        if self.bytes() >= needs {
            return Ok(());
        }
        let fact = Refusal::of("bytes of the workspace", number(self.bytes()));
        let but = "fewer than the call needs (Attention::reserve)";
        Err(fact.against(Error::Workspace, but, number(needs)))
    }

    /// The memory.
    pub(super) fn memory(&mut self) -> Memory<'_> {
        Memory::of(self.memory.spare_capacity_mut())
    }
}
