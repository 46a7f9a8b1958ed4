/* wire_floor PORT STREAMS TOKENS PROMPT_TOKENS: what reading the streams costs when nothing else is done.
 *
 * Connects STREAMS sockets to 127.0.0.1, sends each the same completions request and reads until each answer
 * has ended: one epoll loop, kernel receive stamps asked for and taken, no framing, no events, no records.
 * Prints one line of JSON. cpu_us_per_token is the user and system time of the round (sends, reads, not the
 * connects) over STREAMS * TOKENS. `reads` below STREAMS * TOKENS means that tokens came together. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS_PER_TURN = 256, SILENCE_MS = 30000 };

static const char end_of_answer[] = "\r\n0\r\n\r\n"; /* the last chunk, with the end of the one before it */
enum { END = sizeof end_of_answer - 1 };

struct stream {
    int fd;
    bool started;
    struct timespec last_read; /* the kernel's stamp */
    char tail[END];            /* the last bytes received: the end may be split over reads */
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void give_up(const char *why) {
    fprintf(stderr, "wire_floor: %s\n", why);
    exit(1);
}

static double seconds(struct timeval t) {
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

static double wall_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static char *make_request(int port, int tokens, int prompt_tokens, size_t *length) {
    char *request = NULL, *body = NULL;
    size_t body_length = 0;
    FILE *out = open_memstream(&body, &body_length);
    if (!out)
        die("open_memstream");
    fputs("{\"model\":\"sim\",\"prompt\":[", out);
    for (int i = 0; i < prompt_tokens; i++)
        fprintf(out, "%s%d", i ? "," : "", 1000 + i % 9000);
    fprintf(out,
            "],\"max_tokens\":%d,\"min_tokens\":%d,\"ignore_eos\":true,\"stream\":true,"
            "\"stream_options\":{\"include_usage\":true},\"return_token_ids\":true}",
            tokens, tokens);
    if (fclose(out) != 0)
        die("fclose");
    int n = asprintf(&request,
                     "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
                     "content-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                     port, body_length, body);
    if (n < 0)
        die("asprintf");
    free(body);
    *length = (size_t)n;
    return request;
}

static int connect_to(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one) < 0)
        die("SO_TIMESTAMPNS");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* One read; true when it ended the answer. */
static bool read_some(struct stream *s) {
    static char buffer[64 << 10];
    char control[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec iov = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = sizeof control;
    ssize_t n = recvmsg(s->fd, &message, MSG_DONTWAIT);
    if (n < 0)
        die("recvmsg");
    if (n == 0)
        give_up("the server closed the connection");
    if (!s->started && (n < 12 || memcmp(buffer, "HTTP/1.1 200", 12) != 0))
        give_up("the answer is not 200");
    s->started = true;
    struct cmsghdr *m = CMSG_FIRSTHDR(&message);
    if (m && m->cmsg_level == SOL_SOCKET && m->cmsg_type == SCM_TIMESTAMPNS)
        memcpy(&s->last_read, CMSG_DATA(m), sizeof s->last_read);
    size_t fresh = (size_t)n < END ? (size_t)n : END;
    memmove(s->tail, s->tail + fresh, END - fresh);
    memcpy(s->tail + END - fresh, buffer + n - fresh, fresh);
    return memcmp(s->tail, end_of_answer, END) == 0;
}

/* Sends every request, reads every answer, and returns the number of reads. */
static long run_round(int epoll_fd, struct stream *streams, int count, const char *request, size_t length) {
    long reads = 0;
    for (int i = 0; i < count; i++)
        if (send(streams[i].fd, request, length, MSG_NOSIGNAL) != (ssize_t)length)
            die("send");
    for (int open = count; open > 0;) {
        struct epoll_event events[EVENTS_PER_TURN];
        int n = epoll_wait(epoll_fd, events, EVENTS_PER_TURN, SILENCE_MS);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        if (n == 0)
            give_up("nothing came for 30 s");
        for (int i = 0; i < n; i++, reads++)
            open -= read_some(events[i].data.ptr);
    }
    return reads;
}

int main(int argc, char **argv) {
    int number[4] = {0};
    for (int i = 0; i < 4 && i + 1 < argc; i++)
        number[i] = atoi(argv[i + 1]);
    int port = number[0], count = number[1], tokens = number[2], prompt_tokens = number[3];
    if (argc != 5 || port < 1 || count < 1 || tokens < 1 || prompt_tokens < 1) {
        fprintf(stderr, "usage: %s PORT STREAMS TOKENS PROMPT_TOKENS\n", argv[0]);
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    size_t length;
    char *request = make_request(port, tokens, prompt_tokens, &length);
    struct stream *streams = calloc((size_t)count, sizeof *streams);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!streams || epoll_fd < 0)
        die("setup");
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &streams[i]};
        streams[i].fd = connect_to(port);
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, streams[i].fd, &event) < 0)
            die("epoll_ctl");
    }

    double wall = wall_s(), cpu = cpu_s();
    long reads = run_round(epoll_fd, streams, count, request, length);
    wall = wall_s() - wall;
    cpu = cpu_s() - cpu;
    printf("{\"streams\":%d,\"tokens\":%d,\"cpu_us_per_token\":%.3f,\"wall_s\":%.4f,\"reads\":%ld}\n", count,
           tokens, 1e6 * cpu / ((double)count * tokens), wall, reads);
}
