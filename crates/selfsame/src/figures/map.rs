//! Points of a plane coloured by a label.

use selfsame_eval::{LabelEncoder, number};
use selfsame_report::{Coloring, Scatter};

/// Colours by a label: a colour bar for numbers of many values, else classes; a picture without
/// the label is grey.
pub(crate) fn coloring(label: &str, texts: &[Option<String>]) -> Coloring {
    let encoder = LabelEncoder::fit(texts.iter().flatten());
    if encoder.suggests_regression() {
        let value = |text: &Option<String>| text.as_deref().and_then(number).unwrap_or(f64::NAN);
        return Coloring::Numbers {
            label: label.to_owned(),
            of: texts.iter().map(value).collect(),
        };
    }
    let class = |text: &Option<String>| {
        let class = text.as_deref().and_then(|text| encoder.encode(text));
        class.unwrap_or(usize::MAX)
    };
    Coloring::Classes {
        label: label.to_owned(),
        names: encoder.classes().to_vec(),
        of: texts.iter().map(class).collect(),
    }
}

/// A t-SNE map.
pub(crate) fn tsne_chart(title: String, points: &[[f32; 2]], coloring: Coloring) -> Scatter {
    let place = |point: &[f32; 2]| (f64::from(point[0]), f64::from(point[1]));
    Scatter {
        title,
        subtitle: String::new(),
        x_label: String::new(),
        y_label: String::new(),
        points: points.iter().map(place).collect(),
        coloring,
        ticks: false,
    }
}
