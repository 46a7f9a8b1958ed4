/* wire_server PORT TTFT_MS ITL_MS: a streaming completions server that knows the truth.
 *
 * One epoll thread on 127.0.0.1. Token k of a request is due at received + TTFT + k * ITL, where `received`
 * is the kernel's receive stamp of the request's last byte. The wall clock is read just before each token's
 * write, and GET /truth gives both, so a client's figures can be held against some made without its code.
 *
 *   POST /v1/completions   always streams; reads only "max_tokens" (1..2048) and the length of "prompt"
 *   GET  /truth            {"requests":[{"id":"cmpl-...","received_ns":N,"writes_ns":[one per token]}]}
 *   GET  /truth?clear=1    the same, then forgets the requests that are over
 *   GET  /v1/models, GET /health
 *
 * PORT 0 takes a free port. The port is printed on stdout. The server ends when its stdin does. */
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
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 4096,
    MAX_TOKENS = 2048,
    DEFAULT_TOKENS = 16,    /* vLLM's default for max_tokens */
    FIRST_TOKEN_ID = 1000,  /* token k has the id 1000 + k: four digits for every k */
    MAX_REQUEST = 16 << 20, /* bytes */
    READ_ROOM = 16 << 10,   /* bytes free before each read */
    EVENTS_PER_TURN = 64,   /* few, so that a burst of requests cannot hold up tokens that are due */
};
#define ID_FORMAT "cmpl-%016" PRIx64
#define ID_LENGTH 21

struct truth {
    TAILQ_ENTRY(truth) link;
    char id[ID_LENGTH + 1];
    int64_t received_ns;
    int prompt_tokens, tokens, written;
    bool over; /* finished, or its connection is gone */
    int64_t writes_ns[];
};
TAILQ_HEAD(truths, truth);

struct connection {
    int fd;
    bool dead;
    char *in; /* the request, as far as it has come */
    size_t in_length, in_room;
    char *out; /* what the socket would not take */
    size_t out_sent, out_length;
    struct truth *answer; /* the stream in progress, or NULL */
    int64_t due_ns;       /* its next token */
    struct queue *queue;  /* where it waits for that time, or NULL */
    TAILQ_ENTRY(connection) link;
};
TAILQ_HEAD(queue, connection);

/* An event with places for the two ids, so that nothing is formatted while tokens flow. */
struct chunk {
    char bytes[512];
    size_t length, id_at, token_at;
};

static int64_t ttft_ns, itl_ns;
static int epoll_fd, timer_fd, listen_fd, connections;
static long long created;
static struct truths truths = TAILQ_HEAD_INITIALIZER(truths);
static struct chunk token_chunk, last_chunk;
/* Each is in order of due_ns. Two, because then a connection nearly always joins at the end. */
static struct queue first_tokens = TAILQ_HEAD_INITIALIZER(first_tokens);
static struct queue later_tokens = TAILQ_HEAD_INITIALIZER(later_tokens);

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *resize(void *memory, size_t size) {
    if (!(memory = realloc(memory, size)))
        die("realloc");
    return memory;
}

static int64_t nanoseconds(struct timespec t) {
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return nanoseconds(t);
}

static void watch(int operation, int fd, uint32_t events, void *pointer) {
    struct epoll_event event = {.events = events, .data.ptr = pointer};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0)
        die("epoll_ctl (stdin must be a pipe or a terminal)");
}

static void join(struct queue *queue, struct connection *c) {
    struct connection *before = TAILQ_LAST(queue, queue);
    while (before && before->due_ns > c->due_ns)
        before = TAILQ_PREV(before, queue, link);
    if (before)
        TAILQ_INSERT_AFTER(queue, before, c, link);
    else
        TAILQ_INSERT_HEAD(queue, c, link);
    c->queue = queue;
}

static void leave(struct connection *c) {
    if (c->queue)
        TAILQ_REMOVE(c->queue, c, link);
    c->queue = NULL;
}

static struct connection *next_due(void) {
    struct connection *first = TAILQ_FIRST(&first_tokens), *later = TAILQ_FIRST(&later_tokens);
    return !first || (later && later->due_ns < first->due_ns) ? later : first;
}

static void destroy(struct connection *c) {
    leave(c);
    if (c->answer)
        c->answer->over = true;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
    connections--;
}

static void put(struct connection *c, const char *data, size_t length) {
    if (c->dead)
        return;
    if (!c->out_length) {
        ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);
        c->dead = n < 0 && errno != EAGAIN;
        if (c->dead || n == (ssize_t)length)
            return;
        data += n > 0 ? n : 0;
        length -= n > 0 ? (size_t)n : 0;
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
    }
    c->out = resize(c->out, c->out_length + length);
    memcpy(c->out + c->out_length, data, length);
    c->out_length += length;
}

static void flush(struct connection *c) {
    ssize_t n = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
    c->dead = n < 0 && errno != EAGAIN;
    c->out_sent += n > 0 ? (size_t)n : 0;
    if (c->dead || c->out_sent < c->out_length)
        return;
    c->out_sent = c->out_length = 0;
    watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    if (c->answer)
        join(c->answer->written ? &later_tokens : &first_tokens, c);
}

static void reply(struct connection *c, const char *status, const char *body) {
    char head[256];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", status,
                     strlen(body));
    put(c, head, (size_t)n);
    put(c, body, strlen(body));
}

static void make_chunk(struct chunk *chunk, const char *finish_reason) {
    static const char ids[] = "\"token_ids\":[";
    char event[448];
    int n = snprintf(event, sizeof event,
                     "data: {\"id\":\"" ID_FORMAT "\",\"object\":\"text_completion\",\"created\":%lld,"
                     "\"model\":\"sim\",\"choices\":[{\"index\":0,\"text\":\" de\",\"logprobs\":null,"
                     "\"finish_reason\":%s,\"stop_reason\":null,\"prompt_token_ids\":null,%s%d]}]}\n\n",
                     UINT64_C(0), created, finish_reason, ids, FIRST_TOKEN_ID);
    chunk->length = (size_t)snprintf(chunk->bytes, sizeof chunk->bytes, "%x\r\n%s\r\n", (unsigned)n, event);
    chunk->id_at = (size_t)(strstr(chunk->bytes, "cmpl-") - chunk->bytes);
    chunk->token_at = (size_t)(strstr(chunk->bytes, ids) - chunk->bytes) + sizeof ids - 1;
}

static void finish(struct connection *c) {
    struct truth *t = c->answer;
    char usage[384], tail[512];
    int n = snprintf(usage, sizeof usage,
                     "data: {\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,"
                     "\"model\":\"sim\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,"
                     "\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n",
                     t->id, created, t->prompt_tokens, t->prompt_tokens + t->tokens, t->tokens);
    n = snprintf(tail, sizeof tail, "%x\r\n%s\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", (unsigned)n, usage);
    t->over = true;
    c->answer = NULL;
    put(c, tail, (size_t)n);
}

static void write_token(struct connection *c, int64_t now) {
    struct truth *t = c->answer;
    struct chunk *chunk = t->written + 1 < t->tokens ? &token_chunk : &last_chunk;
    memcpy(chunk->bytes + chunk->id_at, t->id, ID_LENGTH);
    for (int id = FIRST_TOKEN_ID + t->written, i = 3; i >= 0; id /= 10, i--)
        chunk->bytes[chunk->token_at + (size_t)i] = (char)('0' + id % 10);
    t->writes_ns[t->written++] = now;
    put(c, chunk->bytes, chunk->length);
    leave(c);
    c->due_ns += itl_ns;
    if (t->written == t->tokens)
        finish(c);
    else if (!c->out_length) /* else a slow reader: it goes on, with true stamps, when flush() is through */
        join(&later_tokens, c);
}

static void write_due_tokens(void) {
    /* At most one token each, so that a server that is late still reads requests. */
    for (int left = connections; left > 0; left--) {
        struct connection *c = next_due();
        int64_t now = now_ns();
        if (!c || c->due_ns > now)
            return;
        write_token(c, now);
        if (c->dead)
            destroy(c);
    }
}

static void arm_timer(void) {
    struct connection *c = next_due();
    if (!c)
        return;
    struct itimerspec when = {.it_value = {c->due_ns / 1000000000, c->due_ns % 1000000000}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        die("timerfd_settime");
}

static int count_prompt(const char *body) {
    const char *at = strstr(body, "\"prompt\"");
    int tokens = 1;
    for (at = at ? strchr(at, '[') : NULL; at && *at && *at != ']'; at++)
        tokens += *at == ',';
    return tokens;
}

static void start_stream(struct connection *c, const char *body, int64_t received_ns) {
    static uint64_t requests;
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    const char *at = strstr(body, "\"max_tokens\"");
    at = at ? strchr(at, ':') : NULL;
    long tokens = at ? strtol(at + 1, NULL, 10) : DEFAULT_TOKENS;
    if (tokens < 1 || tokens > MAX_TOKENS) {
        reply(c, "400 Bad Request", "{\"error\":{\"message\":\"max_tokens must be from 1 to 2048\","
                                    "\"type\":\"BadRequestError\",\"param\":\"max_tokens\",\"code\":400}}");
        return;
    }
    struct truth *t = resize(NULL, sizeof *t + (size_t)tokens * sizeof t->writes_ns[0]);
    *t = (struct truth){.received_ns = received_ns, .tokens = (int)tokens};
    t->prompt_tokens = count_prompt(body);
    snprintf(t->id, sizeof t->id, ID_FORMAT, ++requests);
    TAILQ_INSERT_TAIL(&truths, t, link);
    c->answer = t;
    c->due_ns = received_ns + ttft_ns;
    put(c, head, sizeof head - 1);
    if (!c->out_length)
        join(&first_tokens, c);
}

static void tell_truth(struct connection *c, bool clear) {
    char *text = NULL;
    size_t length = 0;
    FILE *json = open_memstream(&text, &length);
    if (!json)
        die("open_memstream");
    fputs("{\"requests\":[", json);
    for (struct truth *t = TAILQ_FIRST(&truths), *next; t; t = next) {
        next = TAILQ_NEXT(t, link);
        fprintf(json, "{\"id\":\"%s\",\"received_ns\":%" PRId64 ",\"writes_ns\":[", t->id, t->received_ns);
        for (int k = 0; k < t->written; k++)
            fprintf(json, "%s%" PRId64, k ? "," : "", t->writes_ns[k]);
        fputs(next ? "]}," : "]}", json);
        if (clear && t->over) {
            TAILQ_REMOVE(&truths, t, link);
            free(t);
        }
    }
    fputs("]}", json);
    if (fclose(json) != 0)
        die("fclose");
    reply(c, "200 OK", text);
    free(text);
}

static void answer(struct connection *c, const char *head, const char *body, int64_t received_ns) {
    if (strncmp(head, "POST /v1/completions ", 21) == 0)
        start_stream(c, body, received_ns);
    else if (strncmp(head, "GET /v1/models ", 15) == 0)
        reply(c, "200 OK",
              "{\"object\":\"list\",\"data\":[{\"id\":\"sim\",\"object\":\"model\",\"owned_by\":\"c\"}]}");
    else if (strncmp(head, "GET /health ", 12) == 0)
        reply(c, "200 OK", "");
    else if (strncmp(head, "GET /truth ", 11) == 0 || strncmp(head, "GET /truth?clear=1 ", 19) == 0)
        tell_truth(c, head[10] == '?');
    else
        reply(c, "404 Not Found", "{\"detail\":\"Not Found\"}");
}

static void take_request(struct connection *c, int64_t received_ns) {
    c->in[c->in_length] = '\0';
    char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!end)
        return;
    *end = '\0'; /* so that the search below stays within the head */
    const char *length = strcasestr(c->in, "\r\ncontent-length:");
    size_t need = (size_t)(end + 4 - c->in) + (length ? strtoul(length + 17, NULL, 10) : 0);
    if (c->in_length == need) {
        answer(c, c->in, end + 4, received_ns);
        c->in_length = 0;
    } else {
        *end = '\r';
        c->dead = c->in_length > need; /* pipelining is not for this server */
    }
}

static void receive(struct connection *c) {
    if (c->in_room < c->in_length + READ_ROOM + 1) {
        c->in_room = 2 * c->in_room + READ_ROOM + 1;
        c->in = resize(c->in, c->in_room);
    }
    char control[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec iov = {c->in + c->in_length, c->in_room - c->in_length - 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = sizeof control;
    ssize_t n = recvmsg(c->fd, &message, 0);
    if (n <= 0) {
        c->dead = n == 0 || errno != EAGAIN;
        return;
    }
    struct cmsghdr *m = CMSG_FIRSTHDR(&message);
    if (!m || m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_TIMESTAMPNS) {
        errno = ENOTSUP; /* without the kernel's stamp there is no truth to tell */
        die("kernel receive stamp");
    }
    struct timespec stamp;
    memcpy(&stamp, CMSG_DATA(m), sizeof stamp);
    c->in_length += (size_t)n;
    if (c->answer || c->in_length > MAX_REQUEST)
        c->dead = true;
    else
        take_request(c, nanoseconds(stamp));
}

static void accept_all(void) {
    int fd, one = 1;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (connections == MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = resize(NULL, sizeof *c);
        *c = (struct connection){.fd = fd};
        connections++;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        die("accept");
}

static int start_listening(int port) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* On the listener: accepted sockets inherit it, and the kernel needs a moment to begin stamping. */
    if (setsockopt(listen_fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one) < 0)
        die("SO_TIMESTAMPNS");
    if (bind(listen_fd, (struct sockaddr *)&address, size) < 0 || listen(listen_fd, MAX_CONNECTIONS) < 0 ||
        getsockname(listen_fd, (struct sockaddr *)&address, &size) < 0)
        die("bind");
    return ntohs(address.sin_port);
}

static void handle(const struct epoll_event *event) {
    static char ignored[256];
    struct connection *c = event->data.ptr;
    if (event->data.ptr == &listen_fd) {
        accept_all();
    } else if (event->data.ptr == stdin) {
        if (read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
            exit(0);
    } else if (event->data.ptr != &timer_fd) {
        if (event->events & EPOLLOUT)
            flush(c);
        if (!c->dead && event->events & ~(uint32_t)EPOLLOUT)
            receive(c);
        if (c->dead)
            destroy(c);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s PORT TTFT_MS ITL_MS\n", argv[0]);
        return 2;
    }
    ttft_ns = (int64_t)(strtod(argv[2], NULL) * 1e6);
    itl_ns = (int64_t)(strtod(argv[3], NULL) * 1e6);
    created = time(NULL);
    make_chunk(&token_chunk, "null");
    make_chunk(&last_chunk, "\"length\"");

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int port = start_listening(atoi(argv[1]));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, stdin);
    watch(EPOLL_CTL_ADD, listen_fd, EPOLLIN, &listen_fd);
    watch(EPOLL_CTL_ADD, timer_fd, EPOLLIN | EPOLLET, &timer_fd); /* an edge: it need not be read */
    printf("%d\n", port);
    fflush(stdout);

    for (;;) {
        struct epoll_event events[EVENTS_PER_TURN];
        arm_timer();
        int n = epoll_wait(epoll_fd, events, EVENTS_PER_TURN, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++)
            handle(&events[i]);
        write_due_tokens();
    }
}
