use super::*;
use crate::{Dataset, open};

/// A folder with these files; text files hold what is given.
fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn read_csv(folder: &Path, options: &OpenOptions) -> Result<Files, DataError> {
    read(&folder.join("annot.csv"), options)
}

/// The error of a CSV that lies alone in a folder.
fn error_of(csv: &str) -> String {
    let folder = folder_with(&[("annot.csv", csv)]);
    let error = read_csv(folder.path(), &OpenOptions::default()).unwrap_err();
    assert!(error.is_usage());
    error.to_string()
}

#[test]
fn the_notebooks_header_gives_name_age_and_gender() {
    let folder = folder_with(&[(
        "annot.csv",
        "Images,Name,Age,Gender\nb.jpg,Bob,41,m\n\"a, b.jpg\",\"Ann \"\"A\"\"\",30,f\n",
    )]);
    let files = read_csv(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(files.label_names(), ["name", "age", "gender"]);
    // In the byte order of paths, not of rows.
    assert_eq!((files.name(0), files.name(1)), ("a, b.jpg", "b.jpg"));
    assert_eq!(files.label(0, "name").unwrap(), "Ann \"A\"");
    assert_eq!(files.path(1).unwrap(), folder.path().join("b.jpg"));
}

#[test]
fn any_csv_with_an_image_column_will_do() {
    for (header, column) in [
        ("class,file,path,image", 3),
        ("path,file", 1),
        ("PATH,Images", 1),
        ("IMAGE,x", 0),
        ("x,Path,path_2", 1),
        (",Age Group,path", 2),
    ] {
        let row: Vec<String> = (0..header.split(',').count())
            .map(|i| format!("cell{i}"))
            .collect();
        let text = format!("\u{feff}{header}\r\n{}\r\n", row.join(","));
        let folder = folder_with(&[("annot.csv", &text)]);
        let files = read_csv(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(files.name(0), format!("cell{column}"), "{header}");
    }
    let folder = folder_with(&[("annot.csv", ",Age Group,path\n0,20-29,x\n1,,y\n")]);
    let files = read_csv(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(files.label_names(), ["age group"]);
    assert_eq!(files.label(0, "age group").unwrap(), "20-29");
    assert_eq!(
        files.label(1, "age group"),
        None,
        "an empty cell is no label"
    );
}

#[test]
fn csv_error_names_the_line() {
    let cases = [
        (
            "Images,Name,Age,Gender\na.jpg,A,30,f\nb.jpg,B,3x,m\n",
            "annot.csv:3: age \"3x\"",
        ),
        (
            "Images,Name\n\"a\nb.jpg\",A\nc.jpg\n",
            "annot.csv:4: 1 cells",
        ),
        (
            "Images,Name\r\n\r\na.jpg,A\r\nc.jpg\r\n",
            "annot.csv:4: 1 cells",
        ),
        ("Images,Name\na.jpg,A\n,B\n", "annot.csv:3: no image path"),
        ("name,age\nx,1\n", "annot.csv:1: no column is named Images"),
        ("Images,Age,age\nx,1,2\n", "annot.csv:1: two columns"),
        ("", "annot.csv:1: no column"),
        (
            "Images,x\n sub/ ,1\n",
            "annot.csv:2: the image path \"sub/\" ends with no file name",
        ),
        (
            "Images\n..\n",
            "annot.csv:2: the image path \"..\" ends with no file name",
        ),
        (
            "Images\n../x.jpg\n",
            "annot.csv:2: \"../x.jpg\" lies outside",
        ),
    ];
    for (csv, words) in cases {
        let problem = error_of(csv);
        assert!(problem.contains(words), "{csv:?}: {problem}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("annot.csv"),
        b"Images\na.jpg\n\xff.jpg\n",
    )
    .unwrap();
    let problem = read_csv(folder.path(), &OpenOptions::default())
        .unwrap_err()
        .to_string();
    assert!(problem.contains("annot.csv:3: not UTF-8"), "{problem}");
}

#[test]
fn separators_and_quotes_that_are_wrong_are_named() {
    let text = error_of("Images;Name;Age;Gender\na.jpg;Ann;30;f\n");
    assert!(text.contains("semicolons separate its cells"), "{text}");
    let text = error_of("Images,Name,Age,Gender\na.jpg,Ann,30,f\n\"b.jpg,Bob,41,m\nc.jpg,C,3,f\n");
    assert!(
        text.contains("annot.csv:3") && text.contains("is not closed"),
        "{text}"
    );
    let text = error_of("Images,Name,Age,Gender\na.jpg,Ann\n");
    assert!(text.ends_with("the header has 4"), "{text}");
}

#[test]
fn a_quote_that_is_not_closed_is_named_wherever_it_ends() {
    let rows = |from: usize, to: usize| -> String {
        (from..to)
            .map(|i| format!("f{i:04}.jpg,{i},Ann\n"))
            .collect()
    };
    let (before, after) = (rows(0, 499), rows(500, 1000));
    let open = "f0499.jpg,9,\"Bo Smith\n";
    for (what, text, line) in [
        (
            "to the end of the file",
            format!("{before}{open}{after}"),
            501,
        ),
        ("on the last line", format!("{before}{open}"), 501),
        (
            "on a last line without its end",
            format!("{before}{}", open.trim_end()),
            501,
        ),
        (
            "to the next quote",
            format!("{before}{open}{after}z.jpg,1,Ann \"B\"\n"),
            501,
        ),
        (
            "in the path",
            format!("{before}\"f0499.jpg,9,Bo\n{after}"),
            501,
        ),
    ] {
        let problem = error_of(&format!("Images,Age,Name\n{text}"));
        let expected = format!("annot.csv:{line}: a quote opens before ");
        assert!(problem.contains(&expected), "{what}: {problem}");
        assert!(problem.len() < 300, "{what}: {problem}");
    }
    let problem = error_of("Images,\"Age\na.jpg,3\nb.jpg,4\n");
    assert!(problem.contains("annot.csv:1: a quote"), "{problem}");
}

#[test]
fn a_cell_in_quotes_may_have_several_lines() {
    let folder = folder_with(&[(
        "annot.csv",
        "Images,Caption\na.jpg,\"two\nlines, \"\"so\"\"\" \r\nb.jpg,5\" of it\nc.jpg,\"\"\n",
    )]);
    let files = read_csv(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(files.label(0, "caption").unwrap(), "two\nlines, \"so\"");
    assert_eq!(files.label(1, "caption").unwrap(), "5\" of it");
    assert_eq!(files.len(), 3);
}

#[test]
fn an_age_is_a_finite_number() {
    for age in ["NaN", "inf", "-infinity", "1e999", "3x"] {
        let text = error_of(&format!("Images,Name,Age,Gender\na.jpg,Ann,{age},f\n"));
        let expected = format!("annot.csv:2: age {age:?} is not a number");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn blanks_around_a_cell_are_no_part_of_it() {
    let folder = folder_with(&[(
        "annot.csv",
        " Images , Age \n a.jpg , 3 \n\" b c.jpg\",\"4 \"\n",
    )]);
    let files = read_csv(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!((files.name(0), files.name(1)), ("a.jpg", "b c.jpg"));
    assert_eq!(files.label(0, "age").unwrap(), "3");
    assert_eq!(files.label(1, "age").unwrap(), "4");
}

#[test]
fn a_quote_behind_blanks_opens_a_cell() {
    let folder = folder_with(&[(
        "annot.csv",
        " \"Images\", \"Name\"\na.jpg, \"f\"\nb.jpg,\t \"Smith, \"\"J\"\"\nx, \"\"y\"\"\" \n",
    )]);
    let files = read_csv(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(files.label(0, "name").unwrap(), "f");
    assert_eq!(files.label(1, "name").unwrap(), "Smith, \"J\"\nx, \"y\"");
    assert_eq!(files.name(1), "b.jpg");
    let text = error_of("Images,Name\na.jpg, \"f\"\nb.jpg, \"Smith\nc.jpg,x\n");
    assert!(
        text.contains("annot.csv:3: a quote opens before \"Smith\""),
        "{text}"
    );
    let text = error_of("Images,Name\na.jpg, \"Bo\nSmith\"\nb.jpg\n");
    assert!(text.contains("annot.csv:4: 1 cells"), "{text}");
}

#[test]
fn root_txt_names_the_folder_and_images_root_overrides_it() {
    let folder = folder_with(&[
        ("lists/annot.csv", "Images\nx.jpg\n"),
        ("lists/root.txt", "\u{feff}../pictures\n"),
        ("pictures/x.jpg", "1"),
        ("other/x.jpg", "2"),
    ]);
    let lists = folder.path().join("lists");
    let read_from = |options: &OpenOptions| {
        let files = read_csv(&lists, options).unwrap();
        fs::read_to_string(files.path(0).unwrap()).unwrap()
    };
    assert_eq!(read_from(&OpenOptions::default()), "1");
    let images_root = Some(folder.path().join("other"));
    assert_eq!(
        read_from(&OpenOptions {
            images_root,
            ..Default::default()
        }),
        "2"
    );
    let images_root = Some(folder.path().join("none"));
    let error = read_csv(
        &lists,
        &OpenOptions {
            images_root,
            ..Default::default()
        },
    )
    .unwrap_err();
    assert!(
        error.is_usage() && error.to_string().starts_with("images_root: "),
        "{error}"
    );
    fs::write(lists.join("root.txt"), "gone\n").unwrap();
    let problem = read_csv(&lists, &OpenOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("root.txt:1") && problem.contains("does not exist"),
        "{problem}"
    );
    fs::write(lists.join("root.txt"), " \n").unwrap();
    assert!(read_csv(&lists, &OpenOptions::default()).is_err());
}

#[test]
fn paths_outside_are_refused_naming_both_options_unless_allowed() {
    let folder = folder_with(&[("set/x.jpg", "1"), ("secret.jpg", "2")]);
    let set = folder.path().join("set");
    let absolute = folder
        .path()
        .join("secret.jpg")
        .to_str()
        .unwrap()
        .to_owned();
    for outside in [
        "../secret.jpg",
        &absolute,
        "../missing/y.jpg",
        "gone/../../secret.jpg",
    ] {
        fs::write(set.join("annot.csv"), format!("Images\nx.jpg\n{outside}\n")).unwrap();
        let error = read_csv(&set, &OpenOptions::default()).unwrap_err();
        assert!(
            matches!(&error, DataError::Outside { line: 3, .. }),
            "{outside}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("images_root") && text.contains("allow_outside"),
            "{text}"
        );
        let allowed = OpenOptions {
            allow_outside: true,
            ..Default::default()
        };
        assert_eq!(read_csv(&set, &allowed).unwrap().len(), 2);
    }
    let inside = set.join("x.jpg").to_str().unwrap().to_owned();
    for fine in [
        "x.jpg",
        "./x.jpg",
        "../set/x.jpg",
        "gone/y.jpg",
        "gone/../y.jpg",
        &inside,
    ] {
        fs::write(set.join("annot.csv"), format!("Images\n{fine}\n")).unwrap();
        read_csv(&set, &OpenOptions::default()).unwrap_or_else(|e| panic!("{fine}: {e}"));
    }
}

#[cfg(unix)]
#[test]
fn what_does_not_exist_is_inside_of_a_folder_that_a_link_leads_to() {
    let folder = folder_with(&[("set/x.jpg", "1")]);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("set", &link).unwrap();
    fs::write(link.join("annot.csv"), "Images\ngone/../y.jpg\n").unwrap();
    assert_eq!(read_csv(&link, &OpenOptions::default()).unwrap().len(), 1);
    fs::write(link.join("annot.csv"), "Images\ngone/../../y.jpg\n").unwrap();
    assert!(read_csv(&link, &OpenOptions::default()).is_err());
}

#[cfg(windows)]
#[test]
fn other_machines_and_paths_without_a_root_are_outside() {
    let folder = folder_with(&[("x.jpg", "1")]);
    let inside = folder.path().join("x.jpg").to_str().unwrap().to_owned();
    let disk = inside.split_at(2).0;
    for (image, is_fine) in [
        (inside.as_str(), true),
        (&inside.replace("x.jpg", r"gone\x.jpg"), true),
        (r"\\host.invalid\share\x.jpg", false),
        ("//host.invalid/share/x.jpg", false),
        (r"\\?\UNC\host.invalid\share\x.jpg", false),
        (&format!("{disk}x.jpg"), false),
        (&format!(r"{disk}\x.jpg"), false),
    ] {
        fs::write(
            folder.path().join("annot.csv"),
            format!("Images\n{image}\n"),
        )
        .unwrap();
        let read = read_csv(folder.path(), &OpenOptions::default());
        assert_eq!(read.is_ok(), is_fine, "{image}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_outside_counts_as_outside() {
    use std::os::unix::fs::symlink;
    let folder = folder_with(&[("set/x.jpg", "1"), ("secret/s.jpg", "2")]);
    let set = folder.path().join("set");
    symlink("../secret/s.jpg", set.join("file.jpg")).unwrap();
    symlink("../secret", set.join("folder")).unwrap();
    symlink("x.jpg", set.join("fine.jpg")).unwrap();
    for (image, is_fine) in [
        ("file.jpg", false),
        ("folder/s.jpg", false),
        ("fine.jpg", true),
    ] {
        fs::write(set.join("annot.csv"), format!("Images\n{image}\n")).unwrap();
        let read = read_csv(&set, &OpenOptions::default());
        match is_fine {
            true => assert_eq!(read.unwrap().len(), 1, "{image}"),
            false => {
                let error = read.unwrap_err();
                let is_it = matches!(error, DataError::Outside { line: 2, .. });
                assert!(is_it, "{image}: {error}");
            }
        }
    }
}

#[test]
fn a_header_without_rows_has_no_candidates() {
    let folder = folder_with(&[("annot.csv", "Images,Name\n")]);
    let spec = folder.path().join("annot.csv");
    let error = open(spec.to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::NoCandidates { .. }));
}

#[cfg(unix)] // for the quotes in a name
#[test]
fn what_is_written_reads_back() {
    let folder = folder_with(&[("pictures/a, \"1\".jpg", "1")]);
    let lists = folder.path().join("lists");
    fs::create_dir(&lists).unwrap();
    let row = ["a, \"1\".jpg", "Ann", "30", "f"]
        .map(str::to_owned)
        .to_vec();
    write(&lists.join("annot.csv"), &AGEDB_HEADER, &[row]).unwrap();
    write_root(&lists, &folder.path().join("pictures")).unwrap();
    let text = fs::read_to_string(lists.join("annot.csv")).unwrap();
    assert_eq!(
        text,
        "Images,Name,Age,Gender\n\"a, \"\"1\"\".jpg\",Ann,30,f\n"
    );
    let files = read_csv(&lists, &OpenOptions::default()).unwrap();
    assert!(files.path(0).unwrap().exists());
    assert_eq!(files.label(0, "age").unwrap(), "30");
    assert!(write(&folder.path().join("no/annot.csv"), &["Images"], &[]).is_err());
}

/// `cargo test --release -p selfsame-data --lib million -- --ignored --nocapture`; for the peak of
/// memory run it under `/usr/bin/time -v`.
#[test]
#[ignore = "a measurement: ratios of times mean nothing on a busy machine"]
#[expect(clippy::print_stdout, reason = "its result is to be read")]
fn a_million_rows_are_read_in_three_times_the_csv_crates_own_time() {
    use std::fmt::Write as _;
    use std::time::Instant;
    let mut text = String::from("Images,Name,Age,Gender\n");
    for i in 0..1_000_000 {
        let (folder, person) = (i % 100, i % 20_000);
        let gender = ["f", "m"][i % 2];
        writeln!(
            text,
            "{folder:03}/{i}_Person{person}_{}_{gender}.jpg,Person{person},{},{gender}",
            i % 90,
            i % 90
        )
        .unwrap();
    }
    let folder = folder_with(&[("a.csv", &text)]);
    drop(text);
    let path = folder.path().join("a.csv");
    let mut ratios: Vec<f64> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let rows = csv::Reader::from_path(&path).unwrap().into_records();
            assert_eq!(rows.map(|row| row.unwrap().len()).sum::<usize>(), 4_000_000);
            let own = began.elapsed();
            let began = Instant::now();
            assert_eq!(
                read(&path, &OpenOptions::default()).unwrap().files.len(),
                1_000_000
            );
            began.elapsed().as_secs_f64() / own.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!("{ratios:.2?} times the csv crate's own time");
    // Around 3.0; what it may not be is much more.
    assert!(ratios[2] <= 3.5, "{ratios:?}");
}
