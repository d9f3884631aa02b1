//! Schedules against numpy, step by step.

use selfsame_objectives::{ScheduleConfig, Schedules};
use serde_json::Value;

#[test]
fn schedules_equal_numpy_at_every_step() {
    let golden: Value = serde_json::from_str(include_str!("golden/schedules.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let config: ScheduleConfig = serde_json::from_value(case["config"].clone()).unwrap();
        let schedules = Schedules::new(&config, case["steps_per_epoch"].as_u64().unwrap()).unwrap();
        let column = |key: &str| -> Vec<f64> {
            case[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap())
                .collect()
        };
        let columns = ["lr", "weight_decay", "momentum", "teacher_temp"].map(column);
        assert!(
            columns
                .iter()
                .all(|column| column.len() as u64 == schedules.total_steps())
        );
        for step in 0..schedules.total_steps() {
            let now = schedules.at(step);
            let values = [now.lr, now.weight_decay, now.momentum, now.teacher_temp];
            for (got, want) in values
                .into_iter()
                .zip(columns.each_ref().map(|c| c[step as usize]))
            {
                // Only the cosine of another maths library may differ, in its last bit.
                let tolerance = 4.0 * f64::EPSILON * want.abs().max(config.lr);
                assert!(
                    (got - want).abs() <= tolerance,
                    "step {step}: {got} is not {want}"
                );
            }
        }
    }
}
