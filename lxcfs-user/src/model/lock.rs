//! Taking a lock that a panic may have left behind.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The value behind `mutex`. A panic in another request poisons it; everything we lock is changed in one step, so what is
/// found is whole and stays usable.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
