use crate::line_chart::{LineChart, Reference, Series, side_by_side};

/// What a training run logged at one step, as far as its curves need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossPoint {
    /// Epochs done, with fractions.
    pub epoch: f64,
    /// The DINO loss.
    pub loss: f64,
    /// Mean entropy of the teacher's distributions, below which the loss cannot fall; NaN where it
    /// was not logged.
    pub loss_floor: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Loss and learning rate over epochs, side by side, as SVG text: the notebook's two plots.
///
/// `out_dim` is the number of prototypes K: ln K, the loss of a student that knows nothing, is
/// drawn as a reference. Points are in the order they were logged.
pub fn curves(points: &[LossPoint], out_dim: usize) -> String {
    let over_epochs = |value: fn(&LossPoint) -> f64| -> Vec<(f64, f64)> {
        points
            .iter()
            .map(|point| (point.epoch, value(point)))
            .collect()
    };
    let mut series = vec![Series::line("loss", over_epochs(|point| point.loss))];
    if points.iter().any(|point| point.loss_floor.is_finite()) {
        let floor = over_epochs(|point| point.loss_floor);
        series.push(Series::dashed("floor: teacher entropy", floor));
    }
    let ln_k = (out_dim as f64).ln();
    let loss = LineChart {
        title: "Training loss".to_string(),
        x_label: "epoch".to_string(),
        y_label: "DINO loss".to_string(),
        series,
        references: vec![Reference {
            name: format!("ln K = {ln_k:.2}"),
            y: ln_k,
        }],
        ..LineChart::default()
    };
    let lr = LineChart {
        title: "Learning rate".to_string(),
        x_label: "epoch".to_string(),
        y_label: "learning rate".to_string(),
        series: vec![Series::line("learning rate", over_epochs(|point| point.lr))],
        ..LineChart::default()
    };
    side_by_side(&[loss, lr])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(loss_floor: f64) -> Vec<LossPoint> {
        let point = |i: i32| {
            let epoch = f64::from(i) / 10.0;
            LossPoint {
                epoch,
                loss: 7.6 - 0.02 * f64::from(i),
                loss_floor,
                lr: 1e-6 * epoch,
            }
        };
        (0..100).map(point).collect()
    }

    #[test]
    fn loss_floor_and_ln_k_stand_beside_the_learning_rate() {
        let svg = curves(&run(3.0), 2048);
        for text in [
            "Training loss",
            "floor: teacher entropy",
            "ln K = 7.62",
            "Learning rate",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(
            svg.matches("<path").count(),
            3 + 2,
            "three lines and two legend samples"
        );
    }

    #[test]
    fn a_run_without_a_floor_has_no_legend() {
        let svg = curves(&run(f64::NAN), 2048);
        assert!(!svg.contains("entropy"));
        assert_eq!(svg.matches("<path").count(), 2);
    }
}
