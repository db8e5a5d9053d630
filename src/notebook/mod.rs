//! What the other modules' results look like in an evcxr notebook: tables, highlighted text and charts inline, from the values themselves.
//!
//! A cell that ends in a report, a [`Dictionary`](crate::Dictionary), a [`Figure`](crate::plot::Figure) or an [`Html`] shows it. Wall-clock
//! figures are left out, so that a notebook that is run again changes only where its results do. All text is escaped: corpora are not
//! trusted. Not for: making anything that a program without a notebook would miss.

mod emit;
mod latents;
mod stages;
mod table;

pub use latents::{examples, features, kl};
pub use stages::{exports, scores};
pub use table::{Html, Table};

/// What has an inline form.
pub trait Show {
    /// The form.
    fn show(&self) -> Html;
}

/// Gives types the method that evcxr looks for at the end of a cell.
macro_rules! shown {
    ($($shown:ty),* $(,)?) => {
        $(impl $shown {
            /// Shows it in an evcxr notebook.
            pub fn evcxr_display(&self) {
                crate::notebook::emit::html(&crate::notebook::Show::show(self));
            }
        })*
    };
}
pub(crate) use shown;
