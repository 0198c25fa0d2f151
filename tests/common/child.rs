//! Forked children: Linux and other systems that have them.

#![allow(unreachable_pub, reason = "a module of its own where this is included")]

/// Runs `child` in a forked process, which ends without returning from here; whether it succeeded.
/// The child has the calling thread alone: `child` must not wait for others, nor for their locks.
/// The system's allocator may be used.
pub fn in_a_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child has this thread only, on which nothing is held that it would wait for.
    match unsafe { libc::fork() } {
        -1 => panic!("no process to be had"),
        0 => {
            let is_right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
            // SAFETY: ends the child at once, without the parent's destructors and buffers.
            unsafe { libc::_exit(i32::from(!is_right)) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: a child of this process, and room for its status.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(waited, pid);
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}
