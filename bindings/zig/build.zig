//! zig build test -Dlibrary=LIBRARY -Dinclude=FOLDER -Ddata=FOLDER: LIBRARY is
//! libflash_attention.so or .a.
const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const library = b.option([]const u8, "library", "libflash_attention.so or libflash_attention.a") orelse @panic("-Dlibrary");
    const include = b.option([]const u8, "include", "where flash_attention.h is") orelse @panic("-Dinclude");
    const data = b.option([]const u8, "data", "the tensors of a real model") orelse @panic("-Ddata");

    const header = b.addTranslateC(.{
        .root_source_file = .{ .cwd_relative = b.pathJoin(&.{ include, "flash_attention.h" }) },
        .target = target,
        .optimize = optimize,
    });
    header.defineCMacro("FA_NO_HELPERS", null);
    const attention = b.addModule("attention", .{
        .root_source_file = b.path("attention.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .imports = &.{.{ .name = "flash_attention_h", .module = header.createModule() }},
    });
    attention.addObjectFile(.{ .cwd_relative = library });
    if (std.mem.endsWith(u8, library, ".a")) {
        // What Rust's standard library needs besides libc.
        attention.linkSystemLibrary("unwind", .{});
    } else {
        attention.addRPath(.{ .cwd_relative = std.fs.path.dirname(library) orelse "." });
    }

    const options = b.addOptions();
    options.addOption([]const u8, "data", data);
    const step = b.step("test", "The binding's own tests, and attention of a real model against its exact outputs");
    for ([_][]const u8{ "attention_test.zig", "fields_test.zig", "example/real_model.zig", "example/paged_decode.zig" }) |source| {
        const tests = b.addTest(.{
            .name = std.fs.path.stem(source),
            .root_module = b.createModule(.{
                .root_source_file = b.path(source),
                .target = target,
                .optimize = optimize,
                .imports = &.{ .{ .name = "attention", .module = attention }, .{ .name = "options", .module = options.createModule() } },
            }),
        });
        step.dependOn(&b.addRunArtifact(tests).step);
        // To look at what it links.
        b.getInstallStep().dependOn(&b.addInstallArtifact(tests, .{}).step);
    }
}
