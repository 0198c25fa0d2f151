/* The init process of the emulated machine. It runs the programs that machine.py packed, one after
 * another, sends their output to machine.py, and switches the machine off. */

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Bochs prints the bytes written to PORT_OUT, and stops when "Shutdown" is written to
 * PORT_POWER. */
enum { PORT_OUT = 0xe9, PORT_POWER = 0x8900 };

/* The maximal number of words in a list, and of its bytes. */
enum { WORDS = 1024, BYTES = 1 << 16 };

/* Sends a message to machine.py: its kind, the length in two bytes (little endian), the data. */
static void say(char kind, const char *data, size_t n) {
    outb((unsigned char)kind, PORT_OUT);
    outb((unsigned char)n, PORT_OUT);
    outb((unsigned char)(n >> 8), PORT_OUT);
    for (size_t i = 0; i < n; i++) {
        outb((unsigned char)data[i], PORT_OUT);
    }
}

static void say_number(char kind, int number) {
    char text[16];
    int n = snprintf(text, sizeof text, "%d", number);
    say(kind, text, (size_t)n);
}

static void power_off(void) {
    for (const char *p = "Shutdown"; *p; p++) {
        outb((unsigned char)*p, PORT_POWER);
    }
    for (;;) {
        pause();
    }
}

/* Reads a file of words that end with zero bytes into `words`. Returns whether the file exists. */
static int read_words(const char *path, char *bytes, char **words) {
    int n = 0, file = open(path, O_RDONLY);
    if (file < 0) {
        return 0;
    }
    ssize_t size = read(file, bytes, BYTES);
    close(file);
    for (char *p = bytes; p < bytes + size && n < WORDS - 1; p += strlen(p) + 1) {
        words[n++] = p;
    }
    words[n] = NULL;
    return 1;
}

static void run(char **arguments, char **environment) {
    int pipes[2][2];
    if (pipe(pipes[0]) || pipe(pipes[1])) {
        say_number('E', -1);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 2; i++) {
            dup2(pipes[i][1], i + 1);
            close(pipes[i][0]);
            close(pipes[i][1]);
        }
        execve(arguments[0], arguments, environment);
        perror(arguments[0]);
        _exit(127);
    }
    struct pollfd polled[2];
    for (int i = 0; i < 2; i++) {
        close(pipes[i][1]);
        polled[i] = (struct pollfd){.fd = pipes[i][0], .events = POLLIN};
    }
    static char data[1 << 15];
    while (polled[0].fd >= 0 || polled[1].fd >= 0) {
        poll(polled, 2, -1);
        for (int i = 0; i < 2; i++) {
            if (polled[i].fd < 0 || !polled[i].revents) {
                continue;
            }
            ssize_t n = read(polled[i].fd, data, sizeof data);
            if (n > 0) {
                say((char)('1' + i), data, (size_t)n);
            } else {
                close(polled[i].fd);
                polled[i].fd = -1;
            }
        }
    }
    int status = 0;
    waitpid(child, &status, 0);
    /* The exit code of a shell. */
    say_number('E', WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(void) {
    static char bytes[BYTES], environment_bytes[BYTES];
    static char *words[WORDS], *environment[WORDS];
    char path[32];
    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mkdir("/tmp", 0777);
    mount("none", "/proc", "proc", 0, "");
    mount("none", "/dev", "devtmpfs", 0, "");
    for (int i = 0; i < 3; i++) {
        dup2(open("/dev/null", O_RDWR), i);
    }
    if (ioperm(PORT_OUT, 1, 1) || ioperm(PORT_POWER, 1, 1)) {
        return 1;
    }
    for (const char *p = "\n@emulated@\n"; *p; p++) {
        outb((unsigned char)*p, PORT_OUT);
    }
    read_words("/environment", environment_bytes, environment);
    for (int n = 0;; n++) {
        snprintf(path, sizeof path, "/program.%d", n);
        if (!read_words(path, bytes, words)) {
            break;
        }
        say_number('S', n);
        run(words, environment);
    }
    say('Q', "", 0);
    power_off();
}
